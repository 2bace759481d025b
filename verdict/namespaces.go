package verdict

import "tcpcoroner/evidence"

// This file chooses where a story is told from: a connection between a container
// and the world is seen in the namespaces of both, and is one flow.

// eachStory tells every flow once, in the order of the excerpts.
func (c *caseFile) eachStory(visit func(*story)) {
	views := map[evidence.FlowKey][]*evidence.Excerpt{}
	for i := range c.window.Excerpts {
		e := &c.window.Excerpts[i]
		views[e.Key] = append(views[e.Key], e)
	}
	told := map[*evidence.Excerpt]bool{}
	for i := range c.window.Excerpts {
		e := &c.window.Excerpts[i]
		if told[e] {
			continue
		}
		if s := c.best(e, views[e.Key], told); s != nil {
			visit(s)
		}
	}
}

// best tells the flow of e from the namespace that shows it best, and marks the
// excerpts of all others that show the same RST.
func (c *caseFile) best(e *evidence.Excerpt, views []*evidence.Excerpt, told map[*evidence.Excerpt]bool) *story {
	told[e] = true
	first := c.tell(e)
	if first == nil {
		return nil
	}
	best, all := first, []*story{first}
	for _, o := range views {
		if o.Namespace == e.Namespace || told[o] {
			continue
		}
		s := c.tell(o)
		if s == nil || (first.rst == nil) != (s.rst == nil) || s.rst != nil && !sameReset(first.rst, s.rst) {
			continue
		}
		told[o] = true
		all = append(all, s)
		if d := s.nearness() - best.nearness(); d > 0 || d == 0 && s.time().Before(best.time()) {
			best = s
		}
	}
	if len(all) > 1 {
		best.views = all
	}
	return best
}

// everyView visits the stories, each as every namespace tells it.
func (c *caseFile) everyView(visit func(view, of *story)) {
	for _, s := range c.stories {
		if s.views == nil {
			visit(s, s)
		}
		for _, v := range s.views {
			visit(v, s)
		}
	}
}

// sameReset compares what neither routers nor namespaces change.
func sameReset(a, b *seen) bool {
	return b.Time.Sub(a.Time).Abs() <= sameSegmentWithin && sameHeader(a, b)
}

// nearness: the namespace of the RST's sender knows best, then that of its
// receiver, then one on the way. Equals are decided by who saw the RST first.
func (s *story) nearness() int {
	switch {
	case s.forwarded || s.transit():
		return 1
	case s.local():
		return 3
	case s.direction() == evidence.Received:
		return 2
	}
	return 0
}
