"""The tree of commands as data, and every help text that can be printed without loading a command.

It imports nothing: `sky --help` is the first thing people type, and it must answer at once.
"""

from __future__ import annotations

# group -> sections -> rows of (name, target, help, kind)
# target: "module:attribute", or "" for a group. kind: "" | "hidden" | "later" (understood, not supported yet).
TREE: dict[str, list[tuple[str, list[tuple[str, str, str, str]]]]] = {
    "": [
        (
            "Clusters",
            [
                (
                    "launch",
                    "sky.cli.launch:launch",
                    "Run a task on a cluster, making the cluster if needed.",
                    "",
                ),
                ("exec", "sky.cli.execute:exec_command", "Run a task or command on an existing cluster.", ""),
                ("status", "sky.cli.status:status", "Show clusters.", ""),
                ("queue", "sky.cli.queue:queue", "Show the jobs of clusters.", ""),
                ("logs", "sky.cli.logs:logs", "Show or follow the log of a job.", ""),
                ("cancel", "sky.cli.queue:cancel", "Cancel jobs on a cluster.", ""),
                ("stop", "sky.cli.lifecycle:stop", "Stop clusters, keeping their disks.", ""),
                ("start", "sky.cli.lifecycle:start", "Start stopped clusters again.", ""),
                ("down", "sky.cli.lifecycle:down", "Tear clusters down.", ""),
                (
                    "autostop",
                    "sky.cli.lifecycle:autostop",
                    "Stop or tear down clusters when they are idle.",
                    "",
                ),
            ],
        ),
        (
            "Infrastructure",
            [
                ("check", "sky.cli.infra:check", "Show which infrastructure can be used, and why not.", ""),
                ("gpus", "", "Accelerators and their prices.", ""),
                ("catalog", "", "The price catalog: its age, and current prices.", ""),
                ("show-gpus", "sky.cli.infra:show_gpus", "Old name of `sky gpus list`.", "hidden"),
                ("why", "sky.cli.why:why", "Say why a plan, a cluster, a job or a request is as it is.", ""),
                ("cost-report", "sky.cli.cost:cost_report", "Show what clusters have cost.", ""),
                ("api", "", "The API server: start, stop, login, requests.", ""),
            ],
        ),
        (
            "Not supported yet",
            [
                ("jobs", "", "Managed jobs: recovery, pipelines, pools.", "later"),
                ("serve", "", "Services: replicas behind one endpoint.", "later"),
                ("storage", "", "Buckets.", "later"),
                ("volumes", "", "Volumes.", "later"),
                ("volume", "", "Same as volumes.", "hidden"),
                ("ssh", "", "Own machines as infrastructure.", "later"),
                ("workspace", "", "Workspaces.", "later"),
                ("dashboard", "", "Open the web dashboard.", "later"),
                ("ui", "", "Same as dashboard.", "hidden"),
                ("debug-dump", "", "Collect logs and state in one file.", "later"),
                ("local", "", "A Kubernetes cluster on this machine.", "hidden"),
                ("status-kubernetes", "", "All clusters of a Kubernetes context.", "hidden"),
                ("cpunode", "", "An interactive CPU node.", "hidden"),
                ("gpunode", "", "An interactive GPU node.", "hidden"),
                ("tpunode", "", "An interactive TPU node.", "hidden"),
            ],
        ),
    ],
    "gpus": [
        (
            "Commands",
            [
                ("list", "sky.cli.infra:gpus_list", "List accelerators, or the offers of one.", ""),
                ("label", "", "Label Kubernetes nodes with their GPU type.", "later"),
            ],
        )
    ],
    "catalog": [
        (
            "Commands",
            [
                ("status", "sky.cli.catalog:status", "Show how old the prices of each cloud are.", ""),
                ("refresh", "sky.cli.catalog:refresh", "Ask clouds for their current prices.", ""),
            ],
        )
    ],
    "api": [
        (
            "Commands",
            [
                ("start", "sky.cli.api:start", "Start the local API server.", ""),
                ("stop", "sky.cli.api:stop", "Stop the local API server.", ""),
                ("status", "sky.cli.api:status", "Show requests.", ""),
                ("info", "sky.cli.api:info", "Show which server is used, and how it is.", ""),
                ("logs", "sky.cli.api:logs", "Show the log of a request, or of the server.", ""),
                ("cancel", "sky.cli.api:cancel", "Cancel requests.", ""),
                ("login", "sky.cli.api:login", "Use a remote API server from now on.", ""),
                ("logout", "sky.cli.api:logout", "Forget the remote API server.", ""),
            ],
        )
    ],
    "jobs": [
        (
            "Not supported yet",
            [
                ("launch", "", "Launch a managed job.", "later"),
                ("queue", "", "Show managed jobs.", "later"),
                ("cancel", "", "Cancel managed jobs.", "later"),
                ("logs", "", "Show the log of a managed job.", "later"),
                ("dashboard", "", "Open the dashboard.", "later"),
                ("pool", "", "Pools of workers.", "later"),
            ],
        )
    ],
    "jobs pool": [
        (
            "Not supported yet",
            [
                ("apply", "", "Make or change a pool.", "later"),
                ("status", "", "Show pools.", "later"),
                ("down", "", "Tear pools down.", "later"),
                ("logs", "", "Show the logs of a pool.", "later"),
            ],
        )
    ],
    "serve": [
        (
            "Not supported yet",
            [
                ("up", "", "Launch a service.", "later"),
                ("update", "", "Change a service.", "later"),
                ("status", "", "Show services.", "later"),
                ("down", "", "Tear services down.", "later"),
                ("logs", "", "Show the logs of a service.", "later"),
            ],
        )
    ],
    "storage": [
        (
            "Not supported yet",
            [("ls", "", "List buckets.", "later"), ("delete", "", "Delete buckets.", "later")],
        )
    ],
    "volumes": [
        (
            "Not supported yet",
            [
                ("apply", "", "Make or adopt a volume.", "later"),
                ("ls", "", "List volumes.", "later"),
                ("delete", "", "Delete volumes.", "later"),
            ],
        )
    ],
    "ssh": [
        (
            "Not supported yet",
            [("up", "", "Prepare own machines.", "later"), ("down", "", "Release them.", "later")],
        )
    ],
    "workspace": [
        (
            "Not supported yet",
            [("use", "", "Choose a workspace.", "later"), ("info", "", "Show the workspace.", "later")],
        )
    ],
    "local": [
        (
            "Not supported yet",
            [("up", "", "Make a local Kubernetes cluster.", "later"), ("down", "", "Remove it.", "later")],
        )
    ],
}
TREE["volume"] = TREE["volumes"]

ABOUT = {
    "": "Skyloom runs AI and batch work on any cloud, cluster or own machine, where it is cheapest and available.",
    "gpus": "Accelerators and their prices.",
    "catalog": "The price catalog: what it holds, how old it is, and how to bring it up to date.",
    "api": "The API server: the local one of this machine, or a remote one.",
    "jobs": "Managed jobs: kept alive to their end, across interruptions.",
    "jobs pool": "Pools of workers for managed jobs.",
    "serve": "Services: replicas behind one endpoint.",
    "storage": "Buckets.",
    "volumes": "Volumes.",
    "volume": "Volumes.",
    "ssh": "Own machines as infrastructure.",
    "workspace": "Workspaces.",
    "local": "A Kubernetes cluster on this machine.",
}

ROOT_OPTIONS = [
    ("-v, --version", "Show the version and exit."),
    ("-c, --commit", "Show the commit this was built from and exit."),
    ("--install-shell-completion SHELL", "Install completion for bash, zsh, fish or auto."),
    ("--uninstall-shell-completion SHELL", "Remove it again."),
    ("-h, --help", "Show this message and exit."),
]
GROUP_OPTIONS = [("-h, --help", "Show this message and exit.")]
HELP_FLAGS = ("-h", "--help")


def rows(group: str) -> dict[str, tuple[str, str, str, str]]:
    """The commands of a group by name."""
    return {row[0]: row for _, section in TREE.get(group, []) for row in section}


def path_of(group: str, name: str) -> str:
    return f"{group} {name}".strip()


def help_text(group: str) -> str:
    """What `sky [GROUP] --help` prints."""
    name = f"sky {group}".strip()
    lines = [f"Usage: {name} [OPTIONS] COMMAND [ARGS]...", "", f"  {ABOUT[group]}", "", "Options:"]
    lines += _columns(ROOT_OPTIONS if group == "" else GROUP_OPTIONS)
    for title, section in TREE[group]:
        shown = [(row[0], row[2]) for row in section if row[3] != "hidden"]
        if shown:
            lines += ["", f"{title}:", *_columns(shown)]
    lines += ["", f"`{name} COMMAND --help` shows more about a command."]
    return "\n".join(lines)


def _columns(pairs: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in pairs)
    return [f"  {left:<{width}}  {right}" for left, right in pairs]


def quick_answer(arguments: list[str]) -> str | None:
    """The answer to a pure help or version request; None = a command has to be loaded."""
    *words, last = arguments or ["--help"]
    if not words and last in ("-v", "--version"):
        return version_text()
    if last in HELP_FLAGS and " ".join(words) in TREE:
        return help_text(" ".join(words))
    return None


def version_text() -> str:
    from sky import __version__

    return f"sky, version {__version__}"
