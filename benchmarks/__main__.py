"""`python -m benchmarks`: the measurements that need no GPU."""

from benchmarks.cpu import main

main()
