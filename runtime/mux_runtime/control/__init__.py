"""UnitControl and GatewayControl as generated from mux_core/control.proto."""
