"""Published models are fetched by name: from a hub of our own, over loopback."""

import hashlib
import http.server
import json
import pathlib
import threading

import pytest

from xl_flax import convert
from xl_flax.checkpoints.load import read_description
from xl_flax.converters import tensors
from xl_flax.errors import UserError

huggingface_hub = pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """(folder of published models, paths asked for)."""
    root, asked = tmp_path / "published", []
    root.mkdir()

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.partition("?")[0]
            asked.append(path)
            if path.startswith("/api/models/"):
                owner, model, what = path.removeprefix("/api/models/").split("/")[:3]
                folder = root / owner / model
                about = {"id": f"{owner}/{model}", "sha": COMMIT}
                tree = [
                    {"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size,
                     "oid": COMMIT} for p in folder.rglob("*")
                ]  # fmt: skip
                content = json.dumps(tree if what == "tree" else about).encode()
                found = folder.is_dir()
            else:
                file = root / path.lstrip("/").replace(f"resolve/{COMMIT}/", "")
                found = file.is_file()
                content = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if body and found:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "".join(template[1:]))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "fetched"))
    yield root, asked
    server.shutdown()
    server.server_close()


def test_a_published_name_is_fetched_once_and_what_is_of_no_use_is_not(zoo, hub, tmp_path):
    root, asked = hub
    zoo.save(zoo.make("bert", "ForMaskedLM", zoo.simple("bert")), str(root / "some" / "model"))
    (root / "some" / "model" / "tf_model.h5").write_text("of no use")
    convert.main(["--source=some/model", f"--target={tmp_path / 'ours'}"])
    assert read_description(str(tmp_path / "ours")).heads.keys() == {"mlm"}
    names = {pathlib.PurePath(path).name for path in asked}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "tf_model.h5" not in names
    asked.clear()
    convert.main(["--source=some/model", "--inspect"])
    assert not [path for path in asked if path.endswith("model.safetensors")]
    with pytest.raises(UserError, match="no/where is no folder here and cannot be fetched: .*404"):
        convert.main(["--source=no/where", "--inspect"])


def test_without_safetensors_what_pytorch_wrote_is_fetched(zoo, hub, capsys):
    import torch

    root, _ = hub
    folder = root / "some" / "model"
    zoo.save(zoo.make("bert", "ForMaskedLM", zoo.simple("bert")), str(folder))
    read = tensors.open_folder(str(folder))
    weights = {name: torch.tensor(tensor.read()) for name, tensor in read.items()}
    torch.save(weights, folder / tensors.PICKLED)
    (folder / tensors.FILE).unlink()
    convert.main(["--source=some/model", "--inspect"])
    assert "encoder/layers " in capsys.readouterr().out


def test_without_a_network_the_name_is_in_the_error(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="some/model is no folder here and cannot be fetched: "):
        convert.main(["--source=some/model", "--inspect"])


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nothing", "a b"])
def test_what_is_no_name_is_not_asked_for(name):
    with pytest.raises(UserError, match=f"{name} does not exist"):
        convert.main([f"--source={name}", "--inspect"])
