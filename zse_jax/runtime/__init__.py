"""What every program needs around its own work: command line, configs, devices, processes."""
