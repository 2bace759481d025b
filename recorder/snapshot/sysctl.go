package snapshot

import (
	"context"
	"errors"
	"strings"

	"tcpcoroner/evidence"
)

// sysctls are the settings that decide about resets, with the kernel's defaults
// (Documentation/networking/ip-sysctl.rst, nf_conntrack-sysctl.rst; Linux 5.15 to
// 6.18 agree on them). A default is empty where it is computed from the host's
// memory, or is not the same in all of these.
var sysctls = []evidence.Sysctl{
	{Name: "fs.nr_open", Default: "1048576"},
	{Name: "net.core.netdev_max_backlog", Default: "1000"},
	{Name: "net.core.somaxconn", Default: "4096"},
	{Name: "net.ipv4.conf.all.rp_filter", Default: "0"},
	{Name: "net.ipv4.conf.default.rp_filter", Default: "0"},
	{Name: "net.ipv4.ip_forward", Default: "0"},
	{Name: "net.ipv4.ip_local_port_range", Default: "32768 60999"},
	{Name: "net.ipv4.ip_local_reserved_ports"},
	{Name: "net.ipv4.ip_no_pmtu_disc", Default: "0"},
	{Name: "net.ipv4.tcp_abort_on_overflow", Default: "0"},
	{Name: "net.ipv4.tcp_base_mss", Default: "1024"},
	{Name: "net.ipv4.tcp_challenge_ack_limit"},
	{Name: "net.ipv4.tcp_congestion_control"},
	{Name: "net.ipv4.tcp_ecn", Default: "2"},
	{Name: "net.ipv4.tcp_fastopen", Default: "1"},
	{Name: "net.ipv4.tcp_fin_timeout", Default: "60"},
	{Name: "net.ipv4.tcp_invalid_ratelimit", Default: "500"},
	{Name: "net.ipv4.tcp_keepalive_intvl", Default: "75"},
	{Name: "net.ipv4.tcp_keepalive_probes", Default: "9"},
	{Name: "net.ipv4.tcp_keepalive_time", Default: "7200"},
	{Name: "net.ipv4.tcp_max_orphans"},
	{Name: "net.ipv4.tcp_max_syn_backlog"},
	{Name: "net.ipv4.tcp_max_tw_buckets"},
	{Name: "net.ipv4.tcp_mem"},
	{Name: "net.ipv4.tcp_migrate_req", Default: "0"},
	{Name: "net.ipv4.tcp_mtu_probing", Default: "0"},
	{Name: "net.ipv4.tcp_orphan_retries", Default: "0"},
	{Name: "net.ipv4.tcp_retries1", Default: "3"},
	{Name: "net.ipv4.tcp_retries2", Default: "15"},
	{Name: "net.ipv4.tcp_rfc1337", Default: "0"},
	{Name: "net.ipv4.tcp_rmem"},
	{Name: "net.ipv4.tcp_sack", Default: "1"},
	{Name: "net.ipv4.tcp_shrink_window", Default: "0"},
	{Name: "net.ipv4.tcp_syn_retries", Default: "6"},
	{Name: "net.ipv4.tcp_synack_retries", Default: "5"},
	{Name: "net.ipv4.tcp_syncookies", Default: "1"},
	{Name: "net.ipv4.tcp_timestamps", Default: "1"},
	{Name: "net.ipv4.tcp_tw_reuse", Default: "2"},
	{Name: "net.ipv4.tcp_window_scaling", Default: "1"},
	{Name: "net.ipv4.tcp_wmem"},
	{Name: "net.ipv6.conf.all.forwarding", Default: "0"},
	{Name: "net.netfilter.nf_conntrack_acct", Default: "0"},
	{Name: "net.netfilter.nf_conntrack_buckets"},
	{Name: "net.netfilter.nf_conntrack_checksum", Default: "1"},
	{Name: "net.netfilter.nf_conntrack_log_invalid", Default: "0"},
	{Name: "net.netfilter.nf_conntrack_max"},
	{Name: "net.netfilter.nf_conntrack_tcp_be_liberal", Default: "0"},
	{Name: "net.netfilter.nf_conntrack_tcp_ignore_invalid_rst", Default: "0"},
	{Name: "net.netfilter.nf_conntrack_tcp_loose", Default: "1"},
	{Name: "net.netfilter.nf_conntrack_tcp_max_retrans", Default: "3"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_close", Default: "10"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_close_wait", Default: "60"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_established", Default: "432000"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_fin_wait", Default: "120"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_last_ack", Default: "30"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_max_retrans", Default: "300"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_syn_recv", Default: "60"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_syn_sent", Default: "120"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_time_wait", Default: "120"},
	{Name: "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged", Default: "300"},
}

// sysctlValues reads what settings this kernel has; numbers are separated by
// one space. Settings of the network are those of this thread's namespace.
func (t *Taker) sysctlValues() []evidence.Sysctl {
	var all []evidence.Sysctl
	for _, s := range sysctls {
		text, err := t.read("sys/" + strings.ReplaceAll(s.Name, ".", "/"))
		if err != nil {
			continue
		}
		s.Value = strings.Join(strings.Fields(clean(strings.ReplaceAll(text, "\t", " "))), " ")
		all = append(all, s)
	}
	return all
}

func (t *Taker) takeSysctls(_ context.Context, s *evidence.Snapshot) {
	s.Implicated.Sysctls = t.sysctlValues()
	if len(s.Implicated.Sysctls) == 0 {
		miss(s, "kernel settings", errors.New("none could be read below /proc/sys"), "mount proc with sys")
	}
}
