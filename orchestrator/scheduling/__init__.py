"""Decides, from curves and budget, what trains next. Pure: no Ray, disk or clock."""
