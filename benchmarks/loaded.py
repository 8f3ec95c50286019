"""Prints what this build is; fails where the CUDA library did not load."""

import json

from drocc_ext import build_info

if __name__ == "__main__":
    info = build_info()
    print(json.dumps(info))
    if info["native_cuda"] != "loaded":
        raise SystemExit(f"the CUDA library did not load: {info['native_cuda']}")
