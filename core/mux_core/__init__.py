"""Pure policies and the nouns they speak of; no I/O, no clock, no framework."""
