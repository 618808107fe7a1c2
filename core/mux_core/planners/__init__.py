"""Placement strategies; each implements `mux_core.planning.Planner`."""
