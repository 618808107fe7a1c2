"""Engine hosts: processes that run one model's steps when granted, and the interface to them."""
