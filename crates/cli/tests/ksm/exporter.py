"""Has memory merged, and prints what node_exporter serves of each of KSM's files, and what the file has.

usage: exporter.py NODE_EXPORTER
"""

import mmap
import re
import subprocess
import sys
import time
import urllib.request

KSM = "/sys/kernel/mm/ksm/"
METRICS = {
    "full_scans": "full_scans_total",
    "merge_across_nodes": "merge_across_nodes",
    "pages_shared": "pages_shared",
    "pages_sharing": "pages_sharing",
    "pages_to_scan": "pages_to_scan",
    "pages_unshared": "pages_unshared",
    "pages_volatile": "pages_volatile",
    "run": "run",
    "sleep_millisecs": "sleep_seconds",
}


def read(name):
    with open(KSM + name) as file:
        return int(file.read())


def write(name, value):
    with open(KSM + name, "w") as file:
        file.write(str(value))


# Equal pages, and eight that have no equal.
PAGES = 1024
memory = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(PAGES):
    memory.write(bytes([page if page < 8 else 8 + page % 2]) * 4096)
memory.madvise(mmap.MADV_MERGEABLE)
write("pages_to_scan", 777)
write("sleep_millisecs", 3)
write("run", 1)
scans = read("full_scans") + 3
until = time.monotonic() + 60
while read("full_scans") < scans:
    assert time.monotonic() < until, "no full scans"
    time.sleep(0.01)
# So that nothing changes between the two looks.
write("run", 0)

arguments = ["--collector.disable-defaults", "--collector.ksmd", "--web.listen-address=127.0.0.1:0"]
with subprocess.Popen([sys.argv[1], *arguments], stderr=subprocess.PIPE, text=True) as exporter:
    try:
        said = []
        for line in exporter.stderr:
            said.append(line)
            if address := re.search(r'Listening on" address=(\S+)', line):
                break
        assert said and address, said
        with urllib.request.urlopen(f"http://{address[1]}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
    finally:
        exporter.kill()
served = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
for name, metric in METRICS.items():
    print(name, served["node_ksmd_" + metric], read(name))
print("success", served['node_scrape_collector_success{collector="ksmd"}'], 1)
