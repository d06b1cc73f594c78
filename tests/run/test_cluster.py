"""A real scheduler and real workers, each a process, on 127.0.0.1."""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from lenet_jax import LeNet, data, sweep
from lenet_jax.run import cluster, grid

DIGITS = data.load("digits")
FLAGS = {"optimizers": "adam", "learning_rates": "1e-3,2e-3,4e-3,8e-3", "seeds": 3, "epochs": 1}
SETTINGS = grid.resolve(grid.SweepSettings(**FLAGS, dataset="digits", slice_size=2), DIGITS)
SLICES = grid.plan(SETTINGS)
SHARED = grid.Shared(SETTINGS, LeNet(), DIGITS.train)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Cluster:
    """Processes that `dask` starts, by their addresses."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        self.scheduler = self.start("scheduler", "--port")

    def start(self, kind, port_flag, *flags, **environment):
        port = free_port()
        address = f"tcp://127.0.0.1:{port}"
        command = [sys.executable, "-m", "dask", kind, "--host=127.0.0.1", "--no-dashboard"]
        with (self.folder / f"{kind}-{port}.log").open("w") as log:
            self.processes[address] = subprocess.Popen(
                [*command, f"{port_flag}={port}", *flags],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | environment,
            )
        return address

    def start_worker(self, *packages):
        """One that finds what is in the folders `packages` before what is installed."""
        path = os.pathsep.join(map(str, [*packages, os.environ.get("PYTHONPATH", "")]))
        flags = ("--nthreads=1", "--no-nanny", self.scheduler)
        return self.start("worker", "--worker-port", *flags, PYTHONPATH=path)

    def kill_workers(self):
        for address in self.processes.keys() - {self.scheduler}:
            self.kill(address)

    def kill(self, address):
        self.processes[address].send_signal(signal.SIGKILL)
        self.processes[address].wait()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(cluster, "LOOK_S", 0.1)
    monkeypatch.setattr(cluster, "WAIT_S", 0.1)


@pytest.fixture
def collected():
    """Collects a client that could not connect, before another one starts.

    Collected while another starts, it would wait for ever for a lock that its own thread holds.
    """
    yield
    gc.collect()


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        for _ in range(2):
            started.start_worker()
        yield started
    finally:
        for address in started.processes:
            started.kill(address)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the sweep in this process."""
    path = tmp_path_factory.mktemp("alone")
    sweep.write_results(grid.run(SETTINGS, DIGITS, path), path)
    return path


def run_on(dask, path, log):
    with cluster.connect(dask.scheduler, None, log) as train_slices:
        return grid.run(SETTINGS, DIGITS, path, log, train_slices)


def test_a_worker_that_is_killed_costs_nothing_but_time(dask, alone, tmp_path):
    lines, killed = [], []

    def log(line):
        lines.append(line)
        found = re.search(r"the last by (tcp:\S+)$", line)
        if found and not killed and len(lines) > 1:  # it has begun another slice by now
            killed.append(found[1])
            dask.kill(found[1])

    sweep.write_results(run_on(dask, tmp_path, log), tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == (alone / "sweep.json").read_bytes()
    assert f"{killed[0]} has gone: its slices are trained again" in lines
    assert len([line for line in lines if "the last by tcp" in line]) == len(SLICES)


def test_a_sweep_goes_from_here_to_a_cluster_and_back(dask, alone, tmp_path):
    def interrupted(shared, slices, log_updates):
        yield from grid.train_here(shared, slices[:2], log_updates)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid.run(SETTINGS, DIGITS, tmp_path, print, interrupted)

    def stop(line):
        if "8 of 12" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on(dask, tmp_path, stop)
    assert len(list((tmp_path / "slices").iterdir())) == 4
    sweep.write_results(grid.run(SETTINGS, DIGITS, tmp_path), tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == (alone / "sweep.json").read_bytes()


def test_a_slice_that_fails_everywhere_is_given_up_and_the_others_go_on(dask):
    lines, updates, bad = [], [], grid.Slice("sdg", ((0.1, 0),))
    with cluster.connect(dask.scheduler, None, lines.append) as train_slices:
        trained = train_slices(SHARED, [bad, SLICES[0]], updates.append)
        assert next(trained)[0] == SLICES[0]
        with pytest.raises(cluster.ClusterError, match="1 of 2 slices were given up"):
            list(trained)
    assert any(re.match(r"slice sdg-0.1-0-1 is given up: \w+: .*sdg", line) for line in lines)
    _, rest = grid.split_indices(len(DIGITS.train.labels))
    assert sum(updates) == 2 * (len(rest) // SETTINGS.batch_size)


def test_what_a_worker_gets_is_the_network_and_the_split_that_were_meant(monkeypatch):
    """Of letters in colour, through the tasks as Dask evaluates them, but in this process."""
    import dask
    import distributed

    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3)).astype(np.uint8)
    meant = data.Split(images, np.arange(7), (0.1, 1 / 3, 0.2), (1.0, 2.0, 3.0))
    got = []
    monkeypatch.setattr(distributed, "get_worker", lambda: types.SimpleNamespace(address="here"))
    monkeypatch.setattr(grid, "train_slice", lambda *args: got.append(args) or [])
    results = lambda graph, keys, **_: [id(result) for result in dask.get(graph, keys)]
    client = types.SimpleNamespace(get=results)
    versions = cluster.folder.environment()["versions"]
    shared = grid.Shared(SETTINGS, LeNet(26, 3), meant)
    cluster._submit(client, shared, SLICES[:1], versions, "a-topic")
    (((settings, model, split), part, _),) = got
    assert (settings, part, model) == (SETTINGS, SLICES[0], LeNet(26, 3))
    assert (split.mean, split.std) == (meant.mean, meant.std)
    np.testing.assert_array_equal(split.images, meant.images)
    np.testing.assert_array_equal(split.labels, meant.labels)


# Dask warns, too, if the worker is there before the client.
@pytest.mark.filterwarnings("ignore:Mismatched versions")
def test_a_worker_of_other_versions_is_refused_by_name(dask, tmp_path):
    metadata = tmp_path / "numpy-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.2.3\n")
    other = dask.start_worker(tmp_path)
    with cluster.connect(dask.scheduler, None, print) as train_slices:
        while other not in train_slices.args[0].nthreads():
            time.sleep(0.05)
        words = rf"{other} has other versions .*numpy from {np.__version__} to 1.2.3"
        with pytest.raises(ValueError, match=words):
            list(train_slices(SHARED, SLICES, lambda updates: None))
    dask.kill(other)


def test_a_worker_that_lacks_the_package_says_so(dask, tmp_path):
    (tmp_path / "lenet_jax.py").write_text("raise ModuleNotFoundError('No module lenet_jax')")
    dask.kill_workers()
    dask.start_worker(tmp_path)
    with pytest.raises(cluster.ClusterError, match=r"need .* one says: No module lenet_jax"):
        run_on(dask, tmp_path, print)


def test_without_a_worker_it_says_so_and_waits_and_without_a_scheduler_it_ends(
    dask, tmp_path, monkeypatch, collected
):
    lines = []

    def log(line):
        lines.append(line)
        if "there is no worker" in line:
            dask.kill(dask.scheduler)

    dask.kill_workers()
    with pytest.raises(cluster.ClusterError, match="the scheduler has gone"):
        run_on(dask, tmp_path, log)
    assert len(lines) == 1
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(cluster.ClusterError, match=f"{dask.scheduler}: no scheduler answers"):
        run_on(dask, tmp_path, log)


def test_the_command_starts_workers_and_ctrl_c_says_how_to_go_on(alone, tmp_path):
    flags = [f"--{name}={value}" for name, value in FLAGS.items()]
    command = [sys.executable, "-m", "lenet_jax.sweep", "--dataset=digits", "--slice_size=2"]
    with subprocess.Popen(
        [*command, *flags, "--workers=1", f"--workdir={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as started:
        while "2 of 12" not in (line := started.stdout.readline()):
            assert line, started.stderr.read()
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does
        out, err = started.communicate(timeout=60)  # ends when the last worker, too, has gone
    assert started.returncode == 130, err
    assert out.splitlines()[-1] == f"stopped: the same command with --workdir={tmp_path} continues"
    assert err == ""
    sweep.write_results(grid.run(SETTINGS, DIGITS, tmp_path), tmp_path)
    assert (tmp_path / "sweep.json").read_bytes() == (alone / "sweep.json").read_bytes()


def test_a_slice_that_kills_its_workers_says_how_many_and_the_last():
    from distributed import KilledWorker

    last = types.SimpleNamespace(address="tcp://a:1")
    error = KilledWorker("slice", last, 3)
    assert cluster._explain(error) == "4 workers died with it, the last one was tcp://a:1"


FILES = {
    "empty": "",
    "half-written": '{"address": "tcp://127',
    "not JSON": "tcp://127.0.0.1:8786",
    "a list": "[]",
    "without an address": '{"id": "Scheduler"}',
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_no_scheduler_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.1)
    file = tmp_path / "scheduler.json"
    file.write_text(FILES[case])
    with (
        pytest.raises(ValueError, match=rf"^--scheduler={file}: is .* nor a file that `dask sched"),
        cluster.connect(str(file), None, print),
    ):
        pass


def test_a_scheduler_file_that_is_being_written_is_waited_for(tmp_path, monkeypatch):
    file = tmp_path / "scheduler.json"
    file.write_text(FILES["half-written"])
    finish = lambda seconds: file.write_text('{"address": "tcp://127.0.0.1:8786"}')
    monkeypatch.setattr(cluster.time, "sleep", finish)
    assert cluster.find_scheduler(str(file)) == "tcp://127.0.0.1:8786"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tls://127.0.0.1:1", r"TLS needs Dask's settings distributed\.comm\.tls\.ca-file"),
        ("foo://127.0.0.1:1", "foo"),
        ("tcp://127.0.0.1:1", "no scheduler answers there"),
    ],
)
def test_an_address_that_dask_refuses_is_one_line_with_the_flag(
    address, words, monkeypatch, collected
):
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.5)
    with (
        pytest.raises(cluster.ClusterError, match=words) as raised,
        cluster.connect(address, None, print),
    ):
        pass
    assert str(raised.value).startswith(f"--scheduler={address}: ")


@pytest.mark.slow
def test_a_sweep_goes_over_tls_with_dasks_own_settings(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not there to make certificates")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days=2"]
    request += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    prefix = "DASK_DISTRIBUTED__COMM__"
    tls = {f"{prefix}TLS__CA_FILE": str(certificate), f"{prefix}REQUIRE_ENCRYPTION": "True"}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        tls |= {
            f"{prefix}TLS__{role}__CERT": str(certificate),
            f"{prefix}TLS__{role}__KEY": str(key),
        }
    address = f"tls://127.0.0.1:{free_port()}"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"env": os.environ | tls, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = [*dask, "scheduler", "--no-dashboard", "--protocol=tls", f"--host={address}"]
    sweep_command = [sys.executable, "-m", "lenet_jax.sweep", "--dataset=digits", "--slice_size=2"]
    sweep_command += [f"--{name}={value}" for name, value in FLAGS.items()]
    sweep_command += [f"--scheduler={address}", f"--workdir={tmp_path / 'sweep'}"]
    with (
        subprocess.Popen(scheduler, **quiet) as one,
        subprocess.Popen([*dask, "worker", "--nthreads=1", "--no-nanny", address], **quiet) as two,
    ):
        try:
            done = subprocess.run(
                sweep_command,
                env=os.environ | tls | {"NPROC": "2"},
                capture_output=True,
                text=True,
                timeout=240,
            )
        finally:
            one.kill()
            two.kill()
    assert (done.returncode, done.stderr) == (0, "")
    assert "the last by tls://" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scheduler=nowhere"], "--scheduler=nowhere: is neither an address"),
        (["--scheduler=h:1", "--workers=2"], "--scheduler=h:1: has workers; leave out --workers"),
        (["--workers=0"], "--workers=0: must be at least 1"),
    ],
)
def test_a_bad_flag_is_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        sweep.main(["sweep", "--dataset=digits", f"--workdir={tmp_path}", *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")
