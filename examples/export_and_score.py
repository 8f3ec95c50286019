"""Deploying: a detector as one exported program, scored where drocc_ext is not installed.

`python examples/export_and_score.py`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_wine

from drocc_ext import DROCC

SERVER = """
import sys
sys.modules["drocc_ext"] = None  # as on a machine that has torch alone
import torch
program = torch.export.load(sys.argv[1]).module()
scores, anomalous = program(torch.load(sys.argv[2]))
print(f"elsewhere: {int(anomalous.sum())} of {len(scores)} rows are anomalous")
torch.save(scores, sys.argv[3])
"""


def main() -> None:
    rows, kind = load_wine(return_X_y=True)
    detector = DROCC(random_state=0).fit(rows[kind == 0])
    module = detector.to_module()  # scaling, network, threshold: rows in, scores and labels out
    example = (torch.zeros(2, rows.shape[1], dtype=torch.float64),)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, example, dynamic_shapes=batch)

    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / file for file in ("detector.pt2", "rows.pt", "scores.pt")]
        torch.export.save(program, files[0])
        torch.save(torch.from_numpy(rows), files[1])
        subprocess.run([sys.executable, "-c", SERVER, *map(str, files)], check=True)
        difference = np.abs(torch.load(files[2]).numpy() - detector.decision_function(rows)).max()
        assert difference < 1e-4, difference
        print("the same scores as here")

        try:
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError:
            print("(ONNX: pip install onnx onnxscript onnxruntime)")
            return
        path = str(Path(name) / "detector.onnx")
        torch.onnx.export(program, (), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        scores, _ = session.run(None, {given.name: rows})
        difference = np.abs(scores - detector.decision_function(rows)).max()
        assert difference < 1e-4, difference
        print("the same scores with ONNX Runtime")


if __name__ == "__main__":
    main()
