"""The guest agent: samples the machine it runs on and reports to guestd, over a channel or a broker."""
