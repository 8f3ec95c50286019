"""What other training frameworks need to run DROCC. Each module imports its framework itself."""
