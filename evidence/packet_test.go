package evidence

import "testing"

func TestInterfaceOf(t *testing.T) {
	w := &Window{
		Interfaces: []Interface{{Index: 2, Namespace: 1, Name: "eth0"}, {Index: 2, Name: "ens3"}},
		Namespaces: []Namespace{{Index: 1, Path: "/run/netns/blue"}, {Index: 2, Path: "/proc/812/ns/net"}, {Index: 3, Inode: 77}},
	}
	tests := []struct {
		namespace uint16
		index     uint32
		want      string
	}{
		{0, 2, "ens3"},
		{0, 9, "if9"},
		{1, 2, "eth0@blue"},
		{2, 5, "if5@pid812"},
		{3, 5, "if5@ns77"},
		{4, 5, "if5@ns-4"},
	}
	for _, tt := range tests {
		if got := w.InterfaceOf(&Packet{Namespace: tt.namespace, Interface: tt.index}); got != tt.want {
			t.Errorf("interface %d of namespace %d is %q, want %q", tt.index, tt.namespace, got, tt.want)
		}
	}
	if got := w.InterfaceName(2); got != "ens3" {
		t.Errorf("own interface %q", got)
	}
	if got := w.NamespaceLabel(0); got != "" {
		t.Errorf("own namespace %q", got)
	}
}
