"""The peer of `scaler control` in the benchmark: parses each line, echoes and flushes it, decides nothing."""

import json
import sys

for line in sys.stdin:
    json.loads(line)
    sys.stdout.write(line)
    sys.stdout.flush()
