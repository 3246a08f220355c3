"""Reference backend: TRL's trainer, one trial per process or several processes. Never the engine."""
