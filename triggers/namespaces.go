package triggers

import (
	"slices"

	"tcpcoroner/evidence"
)

// Watch checks triggers for another network namespace too, which is called label
// wherever they speak. Each of them has a storm and a cool-down of its own; what an
// hour may bring is shared. It is safe for concurrent use.
func (s *Set) Watch(label string, triggers ...Trigger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(label, triggers)
}

// Forget ends what Watch began: the namespace is gone.
func (s *Set) Forget(label string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches = slices.DeleteFunc(s.watches, func(w watch) bool { return label != "" && w.state.Namespace == label })
}

// placed says which namespace a firing is of.
func (w *watch) placed(f evidence.Firing) evidence.Firing {
	if w.state.Namespace != "" {
		f.Namespace = w.state.Namespace
		f.Reason = "namespace " + f.Namespace + ": " + f.Reason
	}
	return f
}
