"""Features of photos from a pretrained ResNet, as a file that `ntk-influence audit` reads.

    python -m book.embed photos photos.npz && ntk-influence audit photos.npz

`photos` has one sub-folder a class. The weights of ResNet-18 come from torchvision, which keeps
them in its cache after one download. Any other model will do: what an audit needs is an .npz file
with the arrays embeddings (n, d) and y (n,), and for the report names (n,) and images (n, h, w, 3).
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from tqdm import tqdm

from lib.data import import_datasets

LAYERS = "resnet18"


def network():
    """Return ResNet-18 up to its last layer, and what prepares a photo for it."""
    import_datasets()
    from torchvision import models

    weights = models.get_model_weights(LAYERS).DEFAULT
    try:
        net = models.get_model(LAYERS, weights=weights)
    except OSError as error:
        raise OSError(
            f"the weights of {LAYERS} are missing, and {weights.url} cannot be reached ({error}); "
            f"download that file elsewhere and put it into {torch.hub.get_dir()}/checkpoints"
        ) from error
    net.fc = torch.nn.Identity()
    return net.eval(), weights.transforms()


def embed(folder: str, file: str, batch: int = 32) -> None:
    """Write the features of the photos in a folder to an .npz file."""
    net, prepare = network()
    photos = import_datasets().ImageFolder(folder)
    rows, images = [], []
    with torch.inference_mode():
        for start in tqdm(range(0, len(photos), batch), desc="features"):
            some = [photos[i][0] for i in range(start, min(start + batch, len(photos)))]
            rows.append(net(torch.stack([prepare(photo) for photo in some])).numpy())
            images += [np.asarray(photo.resize((96, 96))) for photo in some]
    y, names = np.array(photos.classes)[photos.targets], [name for name, _ in photos.samples]
    np.savez(file, embeddings=np.concatenate(rows), y=y, names=names, images=np.stack(images))


if __name__ == "__main__":
    try:
        embed(*sys.argv[1:3])
    except (OSError, TypeError) as error:
        sys.exit(f"python -m book.embed FOLDER FILE.npz: {error}")
