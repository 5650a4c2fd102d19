"""What breaks runs, done on purpose: kill -9, full disks. Each prints a table and ends with 1 where a goal fails."""
