"""Many trials inside one budget: searcher, scheduler, deadline, ranking, export, report and the command line."""
