"""`irnext serve`: one server in a process of its own, asked over HTTP, by a client and in a browser."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import documents
import numpy as np
import pytest
import torch
from conftest import randomise
from PIL import Image
from skimage import data

import irnext
from irnext import checkpoints, cli, images, optimize
from irnext.restoration import restore
from irnext.serving import Limits
from irnext.serving.restoring import Restorer
from irnext.serving.storage import Storage
from irnext.serving.threads import Threads

pytestmark = pytest.mark.xdist_group("serving")

QUEUE = 4
WAIT = 60  # seconds, for anything: a busy machine is slow
TASK = "mine"  # the weights given to the server


# ---- the server and its visitors -----------------------------------------------------------------


class Server(NamedTuple):
    process: subprocess.Popen
    url: str
    temporary: Path  # where its folder of temporary files is

    def memory(self, key: str) -> int:
        """Bytes of a line of the process's status: VmRSS, or VmHWM, the peak since `reset_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)[1])

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """The answer, read: with `status`, `headers` and `body`."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=WAIT)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        answer.body = answer.read()
        connection.close()
        return answer

    def upload(self, content: bytes, name: str = "picture.png"):
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return self.request("POST", "/gradio_api/upload", body, Content_Type=kind)

    def join(self, path: str | None, task: str = TASK):
        """Ask for an uploaded file to be restored; the answer names the call."""
        picture = None if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [picture, task]}).encode()
        return self.request("POST", "/gradio_api/call/restore", body, Content_Type="application/json")

    def result(self, joined) -> list:
        """What a call gives; Refused where it fails."""
        event = json.loads(joined.body)["event_id"]
        answer = self.request("GET", f"/gradio_api/call/restore/{event}").body.decode()
        kind, value = re.findall(r"^event: (\w+)\ndata: (.*)$", answer, re.MULTILINE)[-1]
        if kind == "error":
            raise Refused(json.loads(value)["error"])
        return json.loads(value)

    def restore(self, content: bytes, name: str = "picture.png", task: str = TASK) -> Image.Image:
        """The picture in the file that the server gives for download."""
        [path] = json.loads(self.upload(content, name).body)
        return self.download(self.result(self.join(path, task))[2])

    def download(self, file: dict) -> Image.Image:
        answer = self.request("GET", quote(f"/gradio_api/file={file['path']}"))
        assert answer.status == 200
        return Image.open(io.BytesIO(answer.body))


class Refused(Exception):
    pass


@pytest.fixture(scope="module")
def model() -> irnext.IRNeXt:
    torch.manual_seed(0)
    return randomise(irnext.IRNeXt(blocks=1, width=8, low_pass="local").eval())


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    if importlib.util.find_spec("gradio") is None:  # importing it here, too, would take seconds
        pytest.skip("the page needs gradio (extra demo)")
    folder = tmp_path_factory.mktemp("serving")
    checkpoints.save(model, folder / f"{TASK}.safetensors")
    (folder / "tmp").mkdir()
    options = ["--weights", f"{TASK}.safetensors", "--port", "0", "--device", "cpu", "--queue", str(QUEUE)]
    environment = {key: value for key, value in os.environ.items() if key != "IRNEXT_BACKEND"}
    environment |= {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "no_proxy": "*"}
    with open(folder / "errors", "w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "irnext", "serve", *options],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"irnext: serving on (http://127\.0\.0\.1:\d+/)\n", line)
            assert found, (line, (folder / "errors").read_text())
            yield Server(process, found[1], folder / "tmp")
        finally:
            process.kill()
            process.communicate()
        errors.seek(0)
        assert errors.read() == ""  # no refusal is logged, and no end leaves a traceback


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def cat(left: int = 100, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A part of a photograph, (width, height)."""
    return Image.fromarray(data.chelsea()[60 : 60 + size[1], left : left + size[0]])


def png_of_zeros(width: int, height: int) -> bytes:
    """A black picture of one bit a pixel, made without its pixels' memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---- pictures ------------------------------------------------------------------------------------


def kinds() -> dict[str, tuple[bytes, str]]:
    photo = cat()
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = np.asarray(photo.convert("L"))
    wide = Image.fromarray((grey.astype(np.uint16) << 8) | 7)
    alpha = photo.copy()
    alpha.putalpha(photo.convert("L"))
    return {
        "colour": (encoded(photo), "a b.png"),
        "16-bit grey": (encoded(wide), "wide.png"),
        "alpha": (encoded(alpha), "alpha.png"),
        "palette": (encoded(photo.quantize(8), "GIF"), "still.gif"),
        "CMYK": (encoded(photo.convert("CMYK"), "JPEG"), "print.jpg"),
        "turned": (encoded(photo, "JPEG", exif=turned), "turned.jpg"),
        "float": (
            encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
            "f.tif",
        ),
        "one pixel": (encoded(photo.crop((0, 0, 1, 1))), "1.png"),
    }


def test_pictures_of_every_kind_are_restored_as_by_the_command(server, model, tmp_path):
    fast = optimize(model)
    for kind, (content, name) in kinds().items():
        (tmp_path / name).write_bytes(content)
        expected = restore(fast, images.read(tmp_path / name))
        found = server.restore(content, name)
        assert (found.mode, found.size, found.format) == (
            expected.mode, expected.size, "TIFF" if kind == "float" else "PNG"
        ), kind  # fmt: skip
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), kind)


def test_the_answer_has_both_pictures_the_status_and_a_name(server):
    [path] = json.loads(server.upload(encoded(cat()), "my cat.png").body)
    (before, after), status, file = server.result(server.join(path))
    assert np.array_equal(np.asarray(server.download(before)), np.asarray(cat()))
    assert server.download(after).size == (64, 48)
    assert re.fullmatch(
        r"64x48 pixels restored in \*\*\d+ ms\*\* \(mine, backend \w+, device cpu, float32\)", status
    )
    assert Path(file["path"]).name == "my cat-restored.png"


def test_a_shipped_task(server):
    expected = restore(optimize(irnext.load_pretrained("snow")), cat())
    np.testing.assert_array_equal(
        np.asarray(server.restore(encoded(cat()), task="snow")), np.asarray(expected)
    )


def refusals() -> dict[str, tuple[bytes, str, str]]:
    """Files with their names and what is said of them."""
    frames = [cat(left) for left in (0, 50)]
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    not_read = "not a picture in a format that can be read"
    return {
        "text": (b"hello", "no.png", f"no.png: {not_read}"),
        "empty": (b"", "empty.png", f"empty.png: {not_read}"),
        "program": (eps, "eps.png", f"eps.png: {not_read}"),
        "truncated": (encoded(cat())[:-2000], "cut.png", r"cut.png: the picture cannot be decoded: .+"),
        "frames": (
            encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            "two.gif",
            "two.gif: has several frames; extract them into pictures first",
        ),
        "hostile name": (b"hello", "&lt;i&gt;&.png", rf"[^<>]*amp;[^<>]*: {not_read}"),
    }


def test_bad_files_are_refused_with_the_reason_and_without_a_path(server):
    for kind, (content, name, reason) in refusals().items():
        with pytest.raises(Refused) as caught:
            server.restore(content, name)
        assert re.fullmatch(reason, str(caught.value)), (kind, str(caught.value))
        assert str(server.temporary) not in str(caught.value)


def tiff_of(tags: list[tuple[int, int, int, int]], content: bytes) -> bytes:
    """Tags, and what follows them, of a TIFF: number, type, count, value (-1: where the content is)."""
    place = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", *tag[:3], place if tag[3] < 0 else tag[3]) for tag in tags]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4) + content


def bombs() -> dict[str, tuple[bytes, str]]:
    """Files, and what is said of them."""
    grey = [(256, 4, 1, 64), (257, 4, 1, 48), (258, 3, 1, 8), (262, 3, 1, 1)]
    strip = [(259, 3, 1, 1), (273, 4, 1, -1), (279, 4, 1, 64 * 48)]
    alike = [(40000 + index, 7, 2**20, -1) for index in range(100)]
    tile = zlib.compress(bytes(8192 * 8192), 1)
    tiled = [(259, 3, 1, 8), (322, 4, 1, 8192), (323, 4, 1, 8192), (324, 4, 1, -1), (325, 4, 1, len(tile))]
    hidden = [(322, 4, 1, 64), (323, 4, 1, 64)]  # Pillow reads these, libtiff the first
    too_large = "the picture is too large: at most 50 megapixels"
    too_much = "the picture cannot be decoded: its tags take more than the file"
    return {
        "pixels": (png_of_zeros(20000, 10000), too_large),  # 200 MB decoded, and 2.4 GB as numbers
        "tile": (tiff_of(grey + tiled, tile), too_large),
        "hidden tile": (tiff_of(grey + tiled + hidden, tile), too_large),
        "tags": (tiff_of(grey + strip + alike, bytes(2**20)), too_much),
    }


def test_bombs_are_refused_without_their_memory(server):
    server.restore(encoded(cat()))  # what the first call takes is not counted
    for kind, (bomb, reason) in bombs().items():
        assert len(bomb) < 1.2 * 2**20, kind
        server.reset_peak()
        before = server.memory("VmRSS")
        with pytest.raises(Refused, match=rf"picture\.png: {reason}"):
            server.restore(bomb)
        assert server.memory("VmHWM") - before < 30 * 2**20, kind


def test_exif_data_that_is_a_bomb_is_left_out(server):
    alike = [(40000 + index, 7, 2**20, -1) for index in range(100)]
    bomb = encoded(cat(), "PNG", exif=tiff_of([(274, 3, 1, 6), *alike], bytes(2**20)))
    server.reset_peak()
    before = server.memory("VmRSS")
    found = server.restore(bomb)
    assert found.size == (64, 48) and not found.getexif()
    assert server.memory("VmHWM") - before < 30 * 2**20


def test_what_cannot_be_asked(server):
    with pytest.raises(Refused, match="there is no picture yet: drop one first"):
        server.result(server.join(None))
    [path] = json.loads(server.upload(encoded(cat())).body)
    with pytest.raises(Refused, match="there is no model '&lt;b&gt;': choose one of mine, haze, motion-blur"):
        server.result(server.join(path, "<b>"))
    Path(path).unlink()
    with pytest.raises(Refused, match=r"picture\.png is no longer here: upload it again"):
        server.result(server.join(path))


# ---- what is closed ------------------------------------------------------------------------------


def test_only_uploaded_files_can_be_named(server, tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(cat()))
    folder = next(server.temporary.iterdir())
    secret = tmp_path / "secret.png"
    for path in (secret, f"{folder}/../../{secret}", "", "http://127.0.0.1:1/a.png", f"{folder}evil/a.png"):
        answer = server.join(str(path))
        assert answer.status == 400 and b"not as a path or an address" in answer.body, path
    hidden = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    for call in (
        json.dumps({"data": [None, hidden]}),
        json.dumps({"data": [{"nested": [hidden]}, TASK]}),
        json.dumps({"data": [hidden, TASK]}).replace('"meta"', f'"path": "{folder}/a.png", "meta"'),  # twice
        "[" * 10000,
        json.dumps({"data": [{"path": f"{folder}/a\0.png"}, TASK]}),
    ):
        for way in ("call/restore", "queue/join"):
            answer = server.request("POST", f"/gradio_api/{way}", call.encode())
            assert answer.status == 400, (way, call[:80])


def test_calls_that_would_fail_inside_gradio_are_refused(server):
    for call in (
        [],
        {"data": None},
        {"data": []},
        {"data": [None]},
        {"data": ["picture", TASK]},
        {"data": [None, [TASK]]},
        {"data": [None, float("nan")]},
        {"data": [None, "\ud800"]},
        {"data": [None, TASK], "fn_index": 1},
        {"data": [None, TASK], "session_hash": "a" * 65},  # Gradio would keep it for ever
    ):
        for way in ("call/restore", "queue/join"):
            answer = server.request("POST", f"/gradio_api/{way}", json.dumps(call).encode())
            told = answer.body.startswith((b'give "data": [', b"the request is not JSON", b"there is no"))
            assert answer.status == 400 and told, (way, call)
    answer = server.request("GET", "/gradio_api/call/restore/unknown")  # and nothing is logged
    assert answer.status == 200 and answer.body == b'event: error\ndata: "404: Not Found"\n\n'
    field = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\na\r\n--b--\r\n'
    kind = "multipart/form-data; boundary=b"
    assert server.request("POST", "/gradio_api/upload?upload_id=a", field, Content_Type=kind).body == b"[]"


def test_nothing_else_is_served(server, tmp_path):
    (tmp_path / "file").write_text("secret")
    for path in (
        f"/gradio_api/file={tmp_path}/file",
        f"/gradio_api/file={next(server.temporary.iterdir())}/../../../{tmp_path}/file",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/runs",
        "/gradio_api/vibe-code/",
        "/monitoring",
        "/login_check",
        "/docs",
    ):
        assert server.request("GET", path).status == 404, path
    for path in ("/gradio_api/run/restore", "/gradio_api/component_server", "/login", "/"):
        assert server.request("POST", path, b"{}").status == 404, path
    assert server.request("DELETE", "/").status == 404


def test_large_requests_are_refused_before_they_are_read(server):
    for path, size, most in (
        ("/gradio_api/upload", 26 * 2**20, b"25M"),
        ("/gradio_api/call/restore", 10**6, b"64K"),
    ):
        answer = server.request("POST", path, None, Content_Length=str(size))
        assert answer.status == 413 and b"too large: at most " + most in answer.body
        chunked = iter([b"a" * 1000])  # of a length that is not told
        assert server.request("POST", path, chunked, Transfer_Encoding="chunked").status == 411


def test_an_upload_that_is_broken_off_is_not_logged(server):
    address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
    with socket.create_connection(address, WAIT) as visitor:
        visitor.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        time.sleep(0.2)
    assert server.request("GET", "/").status == 200


def test_so_many_connections_are_let_in(server):
    address = (urlsplit(server.url).hostname, urlsplit(server.url).port)
    silent = [socket.create_connection(address, WAIT) for _ in range(450)]
    with pytest.raises(ConnectionError):
        server.request("GET", "/")
    assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 450
    for connection in silent[:100]:
        connection.close()
    while (status := statuses(server)) != 503:
        assert status is None
    for connection in silent:
        connection.close()
    while (status := statuses(server)) != 200:
        assert status in (None, 503)


def statuses(server) -> int | None:
    """The status of an answer; None where the connection is refused."""
    time.sleep(0.05)
    try:
        return server.request("GET", "/robots.txt").status
    except ConnectionError:
        return None


def test_the_page_is_self_contained(server):
    page = server.request("GET", "/")
    assert page.status == 200 and b"irnext: restore a photograph" in page.body
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    loaded = re.findall(rb'<(?:script|link|img)\b[^>]*?(?:src|href)="([^"]+)"', page.body)
    assert loaded and not [url for url in loaded if re.match(rb"(https?:)?//", url)]
    assert b"fonts.googleapis" not in page.body + server.request("GET", "/theme.css").body


# ---- many at once --------------------------------------------------------------------------------


def test_twenty_at_once_get_their_own_picture_or_are_told_to_wait(server, model):
    fast = optimize(model)
    pictures = [cat(10 * index) for index in range(20)]
    with ThreadPoolExecutor(20) as visitors:
        uploads = list(visitors.map(lambda picture: server.upload(encoded(picture)), pictures))
        paths = [json.loads(upload.body)[0] for upload in uploads]
        before = server.memory("VmRSS")
        [large] = json.loads(server.upload(encoded(cat(0, (448, 240)).resize((672, 360)))).body)
        busy = server.join(large, "haze")  # while it is restored, the queue fills
        start = threading.Barrier(20)

        def visit(path: str):
            start.wait()
            return server.join(path)

        joined = list(visitors.map(visit, paths))
        refused = [index for index, answer in enumerate(joined) if answer.status != 200]
        assert 1 <= len(refused) <= 20 - QUEUE
        for index in refused:
            assert joined[index].status == 503 and b"Queue is full" in joined[index].body

        def insist(index: int) -> Image.Image:
            answer = joined[index]
            while answer.status == 503:
                time.sleep(0.2)
                answer = server.join(paths[index])
            return server.download(server.result(answer)[2])

        results = list(visitors.map(insist, range(20)))
    assert server.download(server.result(busy)[2]).size == (672, 360)
    for picture, found in zip(pictures, results, strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(restore(fast, picture)))
    assert server.memory("VmRSS") - before < 100 * 2**20


# ---- Gradio's client, and a browser --------------------------------------------------------------


def test_the_documents_client_runs(server, tmp_path):
    [block] = [
        block
        for block in documents.blocks((documents.ROOT / "docs/serving.md").read_text("utf-8"))
        if block.language == "python"
    ]
    cat().save(tmp_path / "photo.jpg")
    code = block.code.replace("http://127.0.0.1:7860/", server.url)
    assert code != block.code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"no_proxy": "*", "GRADIO_TEMP_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"64x48 pixels restored in .*photo-restored\.png\n", done.stdout)


CHROMIUM = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
CHROMIUM += "--disable-component-update --disable-sync"


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium or Chrome")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM.split())
        yield browser
        browser.close()


def test_in_a_browser(server, browser, tmp_path):
    photo = data.chelsea()[::2, ::2]
    hazy = Image.fromarray(np.rint(0.5 * photo + 100).astype(np.uint8))
    hazy.save(tmp_path / "hazy.png")
    expected = np.asarray(restore(optimize(irnext.load_pretrained("haze")), hazy))

    page = browser.new_page(viewport={"width": 1280, "height": 800})
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url)
    page.get_by_text("Drop Image Here").wait_for()
    assert page.title() == "irnext: restore a photograph"
    download = page.get_by_role("button", name="Download in full resolution")
    assert not download.is_visible()
    page.set_input_files("input[type=file]", tmp_path / "hazy.png")
    page.get_by_role("radio", name="haze").check()
    page.locator("img[src*='hazy.png']").wait_for()
    page.get_by_role("button", name="Restore", exact=True).click()
    page.get_by_text("226x150 pixels restored in").wait_for(timeout=1000 * WAIT)
    page.locator("#result img[src*='after.png']").wait_for()

    page.mouse.move(0, 0)
    handle = page.locator("#result .inner").first
    box = handle.bounding_box()
    at = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*at)
    page.mouse.down()
    page.mouse.move(at[0] - 150, at[1], steps=4)
    page.mouse.up()
    assert abs(handle.bounding_box()["x"] - (box["x"] - 150)) < 5
    page.screenshot(path=tmp_path / "page.png")
    # Left of the handle the page shows the hazy picture, right of it the restored one.
    frame = page.locator("#result img[src*='after.png']").bounding_box()
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"), float)
    resized = [
        np.asarray(Image.fromarray(p).resize((round(frame["width"]), round(frame["height"]))), float)
        for p in (np.asarray(hazy), expected)
    ]
    top, left = round(frame["y"]), round(frame["x"])
    split = round(at[0] - 150 - frame["x"])
    for columns, (right, wrong) in (
        (slice(20, split - 40), resized),
        (slice(split + 40, -20), resized[::-1]),
    ):
        window = slice(60, 120)
        seen = shown[top : top + right.shape[0], left : left + right.shape[1]][window, columns]
        assert np.abs(seen - right[window, columns]).mean() < 5 < np.abs(seen - wrong[window, columns]).mean()

    with page.expect_download() as downloading:
        download.click()
    assert downloading.value.suggested_filename == "hazy-restored.png"
    found = np.asarray(Image.open(downloading.value.path()))
    np.testing.assert_array_equal(found, expected)
    page.get_by_role("button", name="Remove Image").click()
    page.get_by_text("pixels restored in").wait_for(state="hidden")  # of another picture than is shown
    page.get_by_role("button", name="Restore", exact=True).click()
    page.get_by_text("there is no picture yet: drop one first").wait_for()
    assert not complaints
    assert not [url for url in requests if not url.startswith((server.url, "data:", "blob:"))]
    assert len(requests) > 10


# ---- the start and the end -----------------------------------------------------------------------


def refused(capsys, *arguments: str) -> str:
    """The one line on the error output of a server that does not start."""
    assert cli.main(["serve", *arguments]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("irnext: error: ") and errors.count("\n") == 1, errors
    return errors


def test_a_taken_port_is_refused(server, capsys):
    port = str(urlsplit(server.url).port)
    told = refused(capsys, "--port", port)
    assert f"cannot serve on 127.0.0.1, port {port}: Address already in use; give another" in told


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--port", "70000"], "port is 70000: it must be from 0"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot serve on 192.0.2.1, port 0: Cannot assign"),
        (["--max-pixels", "0"], "pixels is 0: it must be at least 1"),
        (["--queue", "0"], "queue is 0: it must be at least 1"),
        (["--max-upload", "much"], "memory size 'much'"),
        (
            ["--max-stored", "40M"],
            "40M cannot hold a file of 25M and its result of 50 megapixels: store up to 295.42M",
        ),
        (["--device", "nonsense"], "device 'nonsense' cannot be used"),
        (["--tile", "100", "--port", "0"], "tile is 100: it must be a multiple of 32"),
        (["--weights", "no.safetensors", "--port", "0"], "no.safetensors"),
        (["--weights", "a/x.pkl", "b/x.pkl"], "b/x.pkl: the page has another choice called x"),
        (["--weights", "haze.pkl"], "haze.pkl: the page has another choice called haze"),
    ],
)
def test_wrong_options_are_refused(options, reason, capsys):
    assert reason in refused(capsys, "--device", "cpu", *options)


def test_memory_that_cannot_be_bounded_is_told(capsys, tmp_path):
    checkpoints.save(irnext.create_model("mimo-unet"), tmp_path / "a.safetensors")
    options = ["--weights", str(tmp_path / "a.safetensors"), "--port", "0"]
    assert "max_memory is for an IRNeXt, and the model is" in refused(capsys, *options, "--max-memory", "1G")


def test_without_gradio(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert "the page needs gradio: pip install 'irnext[demo]'" in refused(capsys, "--port", "0")


def test_no_place_for_temporary_files(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert "No such file or directory" in refused(capsys, "--port", "0")


def test_the_command_line_loads_no_gradio():
    code = "import sys, irnext.cli; sys.exit('gradio' in sys.modules or 'starlette' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- without a server ----------------------------------------------------------------------------


def test_models_are_loaded_once_each_when_asked_for(tmp_path):
    loaded = []

    def load():
        loaded.append(1)
        return lambda image: image

    cat().save(tmp_path / "cat.png")
    with Storage(10**6) as storage:
        restorer = Restorer({"one": load, "two": lambda: pytest.fail("nobody asked")}, storage)
        assert not loaded
        for _ in range(3):
            result = restorer(tmp_path / "cat.png", "one")
        assert loaded == [1]
        assert images.read(result.picture).size == result.size == (64, 48)
    assert not storage.folder.exists()


def test_a_failure_holds_no_memory():
    held = []

    def fail_first():
        picture = cat()
        held.append(weakref.ref(picture))
        raise KeyError

    def fail():
        try:
            fail_first()
        except KeyError as error:
            raise ValueError("no") from error

    with pytest.raises(ValueError, match="no") as caught:
        asyncio.run(Threads().run(fail))
    assert held[0]() is None
    assert caught.traceback[-1].name == "fail"  # can be told all the same


def test_what_is_stored_is_bounded_and_the_oldest_goes_first():
    with Storage(1_000_000) as storage:
        assert storage.folder.stat().st_mode & 0o777 == 0o700
        files = []
        for age in (30, 20, 10):
            files.append(storage.new_folder() / "file")
            files[-1].write_bytes(bytes(300_000))
            os.utime(files[-1], (time.time() - age,) * 2)
        with storage.reserved(100_000):
            storage.make_room()
        assert all(file.exists() for file in files)
        with storage.reserved(100_001):
            storage.make_room()
        assert [file.exists() for file in files] == [False, True, True]
        os.utime(files[1], (0, 0))
        empty = storage.new_folder()
        storage.make_room()
        assert [file.exists() for file in files] == [False, False, True]
        assert not files[1].parent.exists() and not files[0].parent.exists() and empty.exists()
        os.utime(empty, (0, 0))
        storage.make_room()
        assert not empty.exists()


def test_small_files_are_few():
    with Storage(1_000_000) as storage:
        for index in range(10):
            (storage.new_folder() / "file").write_bytes(bytes(index))
        storage.make_room()
        assert len(list(storage.folder.iterdir())) == 3  # of 256 KiB, as they count


def test_uploads_under_way_take_half_of_the_storage_at_most():
    with Storage(1000) as storage:
        with storage.reserved(900), pytest.raises(BlockingIOError, match="being uploaded: try again later"):
            storage.reserved(1).__enter__()
        with storage.reserved(400), storage.reserved(100), pytest.raises(BlockingIOError):
            storage.reserved(1).__enter__()
        with storage.reserved(1):
            pass


def test_limits_say_what_is_taken():
    assert str(Limits()) == "Files up to 25M, pictures up to 50 megapixels."


# ---- the end: nothing below this test can ask the server -----------------------------------------


def test_a_signal_ends_the_server_at_once_and_leaves_nothing(server):
    [path] = json.loads(server.upload(encoded(cat(0, (448, 240)).resize((1344, 720)))).body)
    assert server.join(path, "haze").status == 200
    time.sleep(0.5)  # it is being restored, which takes seconds
    assert list(server.temporary.iterdir())
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(WAIT) == 128 + signal.SIGTERM
    assert not list(server.temporary.iterdir())
