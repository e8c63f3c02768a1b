"""The guest agent: watches the machine it runs on and tells guestd, losing nothing on the way."""
