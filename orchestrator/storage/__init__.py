"""A run folder that is not on this machine: object stores, working copies, leases."""
