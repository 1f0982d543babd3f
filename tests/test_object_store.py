"""Records on S3, as moto plays it on the loopback address, through s3fs.

Of all that `test_storage.py` tests, what only a real protocol shows: what stands for a missing
bucket, for refused access, for a range behind the end, for a server that fails.
"""

import os
import tempfile
import threading

import numpy as np
import pytest
import s3fs
import tensorflow as tf
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.small_split import SPEC
from tests.test_storage import COUNT, batches, convert, shard
from tfrecords_tools import check
from tfseg import storage
from tfseg.data.framing import RecordError
from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import load_spec
from tfseg.data.split_index import load_index
from tfseg.errors import UserError

pytestmark = pytest.mark.nightly
FAR = "s3://bucket/some/records"


class Server:
    """A server of S3 that can be made to fail."""

    def __init__(self, application):
        self._application, self.status, self.failures, self.asked = application, None, 0, []

    def fail(self, status, times):
        self.status, self.failures, self.asked = status, times, []

    def __call__(self, environ, start_response):
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if self.failures <= 0:
            return self._application(environ, start_response)
        self.failures -= 1
        code = {403: "AccessDenied", 503: "SlowDown"}[self.status]
        start_response(f"{self.status} {code}", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(DomainDispatcherApplication(create_backend_app))
    listening = make_server("127.0.0.1", 0, server, threaded=True)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_MAX_ATTEMPTS", "1"),
            ("AWS_CONFIG_FILE", os.devnull),
            ("AWS_SHARED_CREDENTIALS_FILE", os.devnull),
        ):
            patch.setenv(name, value)
        patch.setattr(storage, "_WAITS", (0.0, 0.0))
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("tmp")))
        s3fs.S3FileSystem().mkdir("bucket")
        yield server
    storage._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    listening.shutdown()
    thread.join()


@pytest.fixture
def records(server):
    """A folder of its own for each test."""
    folder = f"{FAR}-{os.urandom(4).hex()}"
    convert(folder)
    yield folder
    server.fail(None, 0)


def test_the_whole_way(records, tmp_path, monkeypatch):
    near = str(tmp_path / "records")
    convert(near)
    assert sorted(storage.names(records)) == sorted(os.listdir(near))
    for name in os.listdir(near):
        with storage.open_whole(f"{records}/{name}") as file:
            assert file.read() == (tmp_path / "records" / name).read_bytes()
    tf.nest.map_structure(np.testing.assert_array_equal, batches(near), batches(records))
    assert check.check(records)[1] == []
    storage.remove(f"{records}/train.index.npz")
    monkeypatch.setattr(storage, "_BLOCK_BYTES", 5000)
    assert load_index(records, "train", SPEC).size == COUNT
    assert storage.exists(f"{records}/train.index.npz")


def test_damage(records):
    index = load_index(records, "train", SPEC)
    whole = index.offset[4] + index.length[4] + 16
    with storage.open_whole(shard(records)) as file:
        content = bytearray(file.read())
    content[60] ^= 1
    storage.write(shard(records), bytes(content[: index.offset[4]]))
    reader = RecordReader(index, records)
    with pytest.raises(RecordError, match="checksum of a record's data"):
        reader.read(0)
    # Behind the end, where S3 refuses the range.
    with pytest.raises(RecordError, match="ends inside a record's header"):
        reader.read(4)
    with pytest.raises(UserError, match=f"(?s)truncated.*accepted: {whole} bytes"):
        load_index(records, "train", SPEC)
    storage.remove(shard(records, 1))
    with pytest.raises(RecordError, match="No such file"):
        reader.read(9)
    with pytest.raises(UserError, match="missing: 1"):
        load_index(records, "train", SPEC)


def test_a_request_that_failed_is_made_again(server, records):
    reader = RecordReader(load_index(records, "train", SPEC), records)
    server.fail(503, 1)
    assert reader.read(0).filename == "image_0"
    gets = [path for method, path in server.asked if method == "GET"]
    assert gets == [f"/{shard(records).removeprefix('s3://')}"] * 2


def test_a_server_that_fails_is_one_error(server, records):
    reader = RecordReader(load_index(records, "train", SPEC), records)
    server.fail(503, 1000)
    with pytest.raises(UserError, match="(?s)cannot be reached.*tried 3 times") as error:
        reader.read(0)
    assert not isinstance(error.value, RecordError)


def test_refused_access(server, records):
    server.fail(403, 1000)
    with pytest.raises(UserError, match="(?s)refuses access.*check the credentials"):
        load_spec(records, "toy")
    with pytest.raises(UserError, match="(?s)refuses access"):
        convert(records)


def test_no_credentials(server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match="(?s)credentials"):
            load_spec(FAR, "toy")
    finally:
        storage._file_system.cache_clear()
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_missing(server):
    with pytest.raises(UserError, match="does not exist"):
        load_spec("s3://nowhere/records", "toy")
    with pytest.raises(UserError, match="(?s)does not exist.*make the bucket"):
        convert("s3://nowhere/records")
