package logs

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// spaces tells which processes live in the network namespaces of a query. It
// remembers what it read, for one call of Around's sources.
type spaces struct {
	r     *Reader
	netns []uint64
	pids  []int
	known map[int]bool
}

func (r *Reader) spaces(q *Query) *spaces {
	return &spaces{r: r, netns: q.NetNS, pids: q.PIDs, known: map[int]bool{}}
}

// foreign tells whether a process is known to live in a namespace that nobody asked
// for. One that is gone, and one that is implicated, is not: a socket can be handed
// from one namespace to another (unix(7), SCM_RIGHTS).
func (s *spaces) foreign(pid int) bool {
	if len(s.netns) == 0 || pid <= 1 || slices.Contains(s.pids, pid) {
		return false
	}
	foreign, known := s.known[pid]
	if !known {
		// What cannot be read is nobody's any more.
		link, err := os.Readlink(s.r.proc(pid, "ns/net"))
		inode, ok := parseNamespace(link)
		foreign = err == nil && ok && !slices.Contains(s.netns, inode)
		s.known[pid] = foreign
	}
	return foreign
}

// parseNamespace reads the target of /proc/PID/ns/net, "net:[4026531840]"
// (namespaces(7)).
func parseNamespace(link string) (inode uint64, ok bool) {
	n, err := fmt.Sscanf(link, "net:[%d]", &inode)
	return inode, err == nil && n == 1 && strings.HasSuffix(link, "]")
}
