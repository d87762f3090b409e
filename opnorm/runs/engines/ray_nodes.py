"""Whether the nodes of a cluster can carry out runs: versions, storage and room, found out before anything trains."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opnorm._core import files
from opnorm.errors import RunError
from opnorm.runs.engines.ray_task import Storage
from opnorm.runs.remote_folder import RemoteFolder

__all__ = ["check_nodes"]

LIMIT = 180.0  # seconds until every node has answered: each loads torch

Answer = dict[str, str]


def check_nodes(ray: Any, cpus: float, gpus: float, storage: Storage) -> list[str]:
    """Ask every node that has room for a run, by a small task, for its versions and a token written to the storage.

    Args:
        ray: the module, connected to a cluster.
        cpus: cores of a run.
        gpus: GPUs of a run.
        storage: what all nodes have to see.

    Returns:
        What there is to say of nodes that differ and can be used.

    Raises:
        RunError: no node has room for a run; a node has another version of opnorm or torch, does not see the storage or
            cannot write there, or does not answer.
    """
    nodes = _nodes_with_room(ray, cpus, gpus)
    token, remote = f"token-{uuid.uuid4().hex}", RemoteFolder(storage.url) if storage.url else None
    folder = Path(storage.root) / ".tokens"
    try:
        if remote:
            remote.write(f".tokens/{token}", token)
        else:
            files.make_folder(folder)
            files.write_bytes(folder / token, token.encode())
        own = _question()("driver", storage.root, storage.url, token)
        answers = _ask(ray, nodes, storage, token)
        for node, answer in answers.items():
            _check_answer(node, answer, own, storage)
            if not remote and not (folder / f"{token}.{answer['id']}").exists():
                raise RunError(_not_shared(node, storage))
    finally:
        if remote:
            remote.remove(f".tokens/{token}")
        else:
            for path in folder.glob(f"{token}*"):
                path.unlink()
    kinds = sorted({answer["capability"] for answer in answers.values()})
    if len(kinds) > 1:
        return [
            f"the nodes' CPUs differ ({', '.join(kinds)} used by torch): a run's last bits depend on where it is carried out"
        ]
    return []


def _nodes_with_room(ray: Any, cpus: float, gpus: float) -> list[dict[str, Any]]:
    def has(node: dict[str, Any], name: str) -> float:
        return float(node["Resources"].get(name, 0))

    nodes = [node for node in ray.nodes() if node["Alive"]]
    able = [node for node in nodes if has(node, "CPU") >= cpus and has(node, "GPU") >= gpus]
    if not able:
        found = "; ".join(
            f"{node['NodeManagerHostname']} {has(node, 'CPU'):g} CPUs and {has(node, 'GPU'):g} GPUs"
            for node in nodes
        )
        raise RunError(f"a run takes {cpus:g} CPUs and {gpus:g} GPUs, and no node has as many: {found[:500]}")
    return able


def _question() -> Callable[[str, str, str, str], Answer]:
    """What is asked of a node; carried there as it is, for there may be no opnorm, or another."""

    def answer(id: str, root: str, url: str, token: str) -> Answer:
        import hashlib
        from pathlib import Path

        try:
            import torch

            import opnorm
        except ImportError as e:
            return {"id": id, "failure": f"{type(e).__name__}: {e}"}
        package, digest = Path(opnorm.__file__).parent, hashlib.sha256()
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
        found = {"id": id, "opnorm": opnorm.__version__, "source": digest.hexdigest(), "where": str(package)}
        found |= {
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "token": "",
        }
        try:
            if url:
                from opnorm.runs.remote_folder import RemoteFolder

                found["token"] = RemoteFolder(url).read(f".tokens/{token}") or ""
            elif Path(root, ".tokens", token).exists():
                found["token"] = Path(root, ".tokens", token).read_text()
                Path(root, ".tokens", f"{token}.{id}").write_text(token)
        except Exception as e:  # noqa: BLE001 - said by the driver, with the name of this node
            found["refused"] = str(e)
        return found

    return answer


def _ask(ray: Any, nodes: list[dict[str, Any]], storage: Storage, token: str) -> dict[str, Answer]:
    """What each of the nodes answers, by its name."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, asked = ray.remote(_question()), {}
    for node in nodes:
        id = node["NodeID"]
        there = task.options(
            num_cpus=0, max_retries=1, scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False)
        )
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {id[:6]})"
        asked[name] = there.remote(id, storage.root, storage.url, token)
    _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=LIMIT)
    found = {}
    for name, ref in asked.items():
        if ref in silent:
            raise RunError(f"the node {name} has not answered within {LIMIT:g} s; ray status shows the nodes")
        try:
            found[name] = ray.get(ref)
        except ray.exceptions.RayError as e:
            raise RunError(f"the node {name} cannot run a task: {' '.join(str(e).split())[-300:]}") from e
    return found


def _check_answer(node: str, answer: Answer, own: Answer, storage: Storage) -> None:
    if failure := answer.get("failure"):
        raise RunError(f"the node {node} has no opnorm that works: {failure}; install the same version there")
    for name in ("opnorm", "torch"):
        if answer[name].partition("+")[0] != own[name].partition("+")[0]:
            raise RunError(
                f"the node {node} has {name} {answer[name]}, and this machine {own[name]}: results would differ; install "
                "the same version everywhere"
            )
    if answer["source"] != own["source"]:
        raise RunError(
            f"the node {node} has opnorm {answer['opnorm']} with another source, in {answer['where']}; install the same "
            "everywhere"
        )
    if why := answer.get("refused"):
        raise RunError(f"the node {node} cannot use {storage.url or storage.root}: {why}")
    if not answer["token"]:
        raise RunError(_not_shared(node, storage))


def _not_shared(node: str, storage: Storage) -> str:
    return (
        f"the node {node} does not see what this machine writes to {storage.url or storage.root}: it is not shared; use "
        "a folder that all nodes see under this path (--out), or a URL such as s3://bucket/study (--storage)"
    )
