"""A process of row 6 that takes one step after another towards being an engine host."""

import ctypes
import sys
from typing import Any

from shares import serve

HIDDEN, LAYERS = 2560, 36


class Steps:
    """Each step keeps what the former made."""

    def __init__(self, device: str) -> None:
        self.device, self.kept = device, list[Any]()

    def context(self) -> bool:
        """A bare CUDA context."""
        if self.device == "cuda":
            cuda, device, made = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
            for code in (cuda.cuInit(0), cuda.cuDeviceGet(ctypes.byref(device), 0),
                         cuda.cuDevicePrimaryCtxRetain(ctypes.byref(made), device)):  # fmt: skip
                if code:
                    raise RuntimeError(f"driver error {code}")
        return True

    def torch(self) -> bool:
        """torch and its first kernel."""
        import torch

        self.kept.append(torch.ones(1, device=self.device) + 1)
        return self._idle()

    def matmul(self) -> bool:
        """The first matrix product: cuBLAS and its workspace."""
        import torch

        x = torch.ones(64, HIDDEN, device=self.device, dtype=torch.bfloat16)
        self.weight = torch.ones(HIDDEN, HIDDEN, device=self.device, dtype=torch.bfloat16)
        self.kept += [x, x @ self.weight]
        return self._idle()

    def attention(self) -> bool:
        """The first scaled dot product attention, with and without a mask."""
        import torch
        from torch.nn import functional

        q = torch.ones(4, 8, 16, 128, device=self.device, dtype=torch.bfloat16)
        mask = torch.ones(16, 16, dtype=torch.bool, device=self.device).tril()
        self.kept.append(functional.scaled_dot_product_attention(q, q, q, attn_mask=mask))
        self.kept.append(functional.scaled_dot_product_attention(q, q, q, is_causal=True))
        return self._idle()

    def graphs(self, count: int) -> bool:
        """As many CUDA graphs, each of a decode step's number of products."""
        import torch

        if self.device != "cuda":
            return True
        pool = torch.cuda.graph_pool_handle()
        for index in range(count):
            x = torch.ones(index + 1, HIDDEN, device=self.device, dtype=torch.bfloat16)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                for _ in range(4 * LAYERS):
                    x = torch.relu(x @ self.weight)
            self.kept += [graph, x]
        return self._idle()

    def _idle(self) -> bool:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        return True


def main() -> None:
    steps = Steps(sys.argv[1])
    serve({name: getattr(steps, name) for name in
           ("context", "torch", "matmul", "attention", "graphs")})  # fmt: skip


if __name__ == "__main__":
    main()
