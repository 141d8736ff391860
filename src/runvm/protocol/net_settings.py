"""The settings of a network namespace (files below /proc/sys/net) that a container's has from the host's."""

from __future__ import annotations

NAMESPACE_SETTINGS = (
    "ipv4/ip_forward",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/default/rp_filter",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/all/disable_ipv6",
    "ipv6/conf/default/disable_ipv6",
    "ipv6/conf/lo/disable_ipv6",
)
"""Those that engines write in a namespace, always told; in the order in which to set them."""

PORT_RANGE, CONGESTION = "ipv4/ip_local_port_range", "ipv4/tcp_congestion_control"

_IPV4_CONF = {
    "accept_local": "0",
    "accept_redirects": "1",
    "accept_source_route": "1",
    "arp_announce": "0",
    "arp_filter": "0",
    "arp_ignore": "0",
    "arp_notify": "0",
    "log_martians": "0",
    "proxy_arp": "0",
    "route_localnet": "0",
    "secure_redirects": "1",
    "send_redirects": "1",
    "src_valid_mark": "0",
}
_IPV6_CONF = {"accept_ra": "1", "accept_redirects": "1", "autoconf": "1", "hop_limit": "64", "use_tempaddr": "0"}

USUAL: dict[str, tuple[str, ...]] = {
    "core/somaxconn": ("4096",),
    PORT_RANGE: ("32768 60999",),
    CONGESTION: ("cubic",),
    "ipv4/fib_multipath_hash_policy": ("0",),
    "ipv4/icmp_echo_ignore_all": ("0",),
    "ipv4/icmp_echo_ignore_broadcasts": ("1",),
    "ipv4/igmp_max_memberships": ("20",),
    "ipv4/ip_default_ttl": ("64",),
    "ipv4/ip_local_reserved_ports": ("",),
    "ipv4/ip_no_pmtu_disc": ("0",),
    "ipv4/ip_nonlocal_bind": ("0",),
    "ipv4/ip_unprivileged_port_start": ("1024",),
    "ipv4/ping_group_range": ("1 0",),
    "ipv4/tcp_abort_on_overflow": ("0",),
    "ipv4/tcp_ecn": ("2",),
    "ipv4/tcp_fastopen": ("1",),
    "ipv4/tcp_fin_timeout": ("60",),
    "ipv4/tcp_keepalive_intvl": ("75",),
    "ipv4/tcp_keepalive_probes": ("9",),
    "ipv4/tcp_keepalive_time": ("7200",),
    # by the host's memory
    "ipv4/tcp_max_syn_backlog": ("128", "256", "512", "1024", "2048", "4096"),
    "ipv4/tcp_mtu_probing": ("0",),
    "ipv4/tcp_no_metrics_save": ("0",),
    "ipv4/tcp_notsent_lowat": ("4294967295",),
    "ipv4/tcp_orphan_retries": ("0",),
    "ipv4/tcp_retries2": ("15",),
    "ipv4/tcp_rfc1337": ("0",),
    "ipv4/tcp_rmem": ("4096 131072 6291456", "4096 131072 33554432"),  # the second from Linux 6.17 on
    "ipv4/tcp_sack": ("1",),
    "ipv4/tcp_slow_start_after_idle": ("1",),
    "ipv4/tcp_syn_retries": ("6",),
    "ipv4/tcp_synack_retries": ("5",),
    "ipv4/tcp_syncookies": ("1",),
    "ipv4/tcp_timestamps": ("1",),
    "ipv4/tcp_tw_reuse": ("2",),
    "ipv4/tcp_window_scaling": ("1",),
    "ipv4/tcp_wmem": ("4096 16384 4194304",),
    "ipv6/bindv6only": ("0",),
    "ipv6/ip_nonlocal_bind": ("0",),
    "unix/max_dgram_qlen": ("10",),
    **{f"ipv4/conf/{which}/{name}": (value,) for which in ("all", "default") for name, value in _IPV4_CONF.items()},
    "ipv4/conf/all/accept_source_route": ("0",),
    **{f"ipv6/conf/{which}/{name}": (value,) for which in ("all", "default") for name, value in _IPV6_CONF.items()},
}
"""Further ones, and what the kernel has there: they are told where the host's namespace has something else."""


def plain(value: str) -> str:
    """A file's content with single spaces."""
    return " ".join(value.split())
