package evidence

import "strings"

// ParseCgroup picks the telling path of /proc/PID/cgroup (cgroups(7)): version 2's,
// or systemd's own hierarchy on version 1, or the first that is not the root.
func ParseCgroup(text string) string {
	var unified, systemd, first string
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(f) < 3 || f[2] == "/" {
			continue
		}
		switch {
		case f[0] == "0" && f[1] == "":
			unified = f[2]
		case f[1] == "name=systemd":
			systemd = f[2]
		case first == "":
			first = f[2]
		}
	}
	for _, path := range []string{unified, systemd, first} {
		if path != "" {
			return path
		}
	}
	if text == "" {
		return ""
	}
	return "/"
}

// UnitOf is the innermost service or scope of a cgroup path, so the user's service
// and not the user's manager. Slices hold no process of their own.
func UnitOf(cgroup string) string {
	parts := strings.Split(cgroup, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		name := parts[i]
		for _, suffix := range []string{".service", ".scope"} {
			if stem := strings.TrimSuffix(name, suffix); stem != name && stem != "" {
				return name
			}
		}
	}
	return ""
}
