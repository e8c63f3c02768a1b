"""The driver of an MQTT broker: paho-mqtt on the event loop, messages acknowledged by hand."""

from guestd.broker.client import Message
from guestd.broker.connection import Connection, connected
from guestd.broker.login import Login, login

__all__ = ["Connection", "Login", "Message", "connected", "login"]
