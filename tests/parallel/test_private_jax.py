"""The private names of jax that `parallel/processes.py` uses, which a new version may rename. No other module uses any."""

import re
from pathlib import Path

from jax._src import clusters, distributed

ROOT = Path(__file__).parents[2]


def test_the_names_are_there():
    assert all(issubclass(kind, clusters.ClusterEnv) for kind in clusters.ClusterEnv._cluster_types)
    assert {"is_env_present", "get_coordinator_address", "get_process_count", "get_process_id"} <= set(
        dir(clusters.ClusterEnv)
    )
    assert hasattr(distributed.global_state, "client")


def test_no_other_module_uses_private_names():
    used = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "hir_jax").rglob("*.py")
        if re.search(r"\bjax\._src\b|\bjaxlib\.(_|xla_client)", path.read_text(encoding="utf-8"))
    }
    assert used == {"hir_jax/parallel/processes.py"}
