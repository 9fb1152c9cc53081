"""The processes of one run: their collectives, their watchdog, and how they are asked to stop."""
