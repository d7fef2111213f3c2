"""Backbone, nested layer and packing as one ONNX file; onnxruntime gives the same bytes, without PyTorch."""

import numpy as np
import onnxruntime
import torch

import nhl_fast as nhl


class Encoder(torch.nn.Module):
    """Pictures to packed codes."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
        )
        self.layer = nhl.NestedHashLayer(64, code_lengths=(8, 16, 32, 64, 128))

    def forward(self, images):
        return self.layer.encode(self.backbone(images))


torch.manual_seed(0)
model = Encoder().eval()
images = torch.randn(4, 3, 32, 32)
torch.onnx.export(  # for any number n of pictures
    model, (images,), "encoder.onnx", dynamo=True, verbose=False,
    input_names=["images"], output_names=["codes"], dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
)  # fmt: skip

session = onnxruntime.InferenceSession("encoder.onnx", providers=["CPUExecutionProvider"])
images = torch.randn(64, 3, 32, 32)
(codes,) = session.run(["codes"], {"images": images.numpy()})
assert codes.dtype == np.uint8
assert np.array_equal(codes, model(images).numpy())

# Two programs add in different orders: a bit could differ where an output is 0 up to rounding; none is so near here.
smallest = model.layer.project(model.backbone(images)).abs().min()
print(f"onnxruntime: {codes.size} equal bytes; the smallest output is {smallest:.0e}")
