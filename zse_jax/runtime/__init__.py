"""What every program needs: command line, configs, devices, processes."""
