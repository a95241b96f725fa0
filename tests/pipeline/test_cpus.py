"""CPUs of the job: SLURM's word, then the process's ties, and never more than a quota pays for."""

import os

import pytest

from genrag_cli.pipeline.cpus import allotted_cpus

TIED = len(os.sched_getaffinity(0))


def put(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


@pytest.mark.parametrize(
    ("environ", "cpus"),
    [
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "5"}, 3),
        ({"SLURM_CPUS_ON_NODE": "5"}, 5),
        ({"SLURM_CPUS_PER_TASK": "many", "SLURM_CPUS_ON_NODE": "5"}, 5),
        ({"SLURM_CPUS_PER_TASK": "0"}, TIED),
        ({}, TIED),
    ],
)
def test_slurm_says_how_many_and_else_what_the_process_is_tied_to(environ, cpus, tmp_path):
    assert allotted_cpus(environ, tmp_path) == cpus


def test_the_process_s_own_variables_count(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert allotted_cpus() == 1


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 64), ("250000 100000", 2), ("400000 200000", 2), ("50000 100000", 1)]
)
def test_a_quota_of_a_version_2_group_is_kept(tmp_path, quota, cpus):
    put(tmp_path, "proc/self/cgroup", "0::/user.slice/job_7")
    put(tmp_path, "sys/fs/cgroup/user.slice/job_7/cpu.max", quota)
    assert allotted_cpus({"SLURM_CPUS_PER_TASK": "64"}, tmp_path) == cpus


def test_the_tightest_of_nested_quotas_counts(tmp_path):
    put(tmp_path, "proc/self/cgroup", "0::/a/b")
    put(tmp_path, "sys/fs/cgroup/a/cpu.max", "300000 100000")
    put(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "800000 100000")
    assert allotted_cpus({"SLURM_CPUS_ON_NODE": "64"}, tmp_path) == 3


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_a_version_1_group_is_kept(tmp_path, mount):
    put(tmp_path, "proc/self/cgroup", "5:memory:/job\n4:cpu,cpuacct:/job")
    put(tmp_path, f"sys/fs/cgroup/{mount}/job/cpu.cfs_quota_us", "200000")
    put(tmp_path, f"sys/fs/cgroup/{mount}/job/cpu.cfs_period_us", "100000")
    assert allotted_cpus({"SLURM_CPUS_PER_TASK": "64"}, tmp_path) == 2


def test_a_version_1_group_without_a_quota_limits_nothing(tmp_path):
    put(tmp_path, "proc/self/cgroup", "4:cpu,cpuacct:/")
    put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert allotted_cpus({"SLURM_CPUS_PER_TASK": "64"}, tmp_path) == 64


def test_in_a_container_the_mount_is_the_group_where_its_path_is_that_outside(tmp_path):
    put(tmp_path, "proc/self/cgroup", "0::/docker/0123abc")
    put(tmp_path, "sys/fs/cgroup/cpu.max", "200000 100000")
    assert allotted_cpus({"SLURM_CPUS_PER_TASK": "64"}, tmp_path) == 2
