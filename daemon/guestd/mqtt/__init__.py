"""The driver of an MQTT broker: paho-mqtt on the event loop, messages acknowledged by hand."""
