"""The command's process: restarts sessions until the search is over, then finalizes."""
