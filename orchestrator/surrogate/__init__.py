"""Predicts, from all trials of a search, what a configuration or a trial will reach. Pure: no Ray, disk or clock."""
