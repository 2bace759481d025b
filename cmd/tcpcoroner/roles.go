package main

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"tcpcoroner/evidence"
)

// rolesHelp is how a roles file looks.
const rolesHelp = `write a network and its party a line, such as "192.0.2.0/24": client`

// partyNames are those that a network can be given.
var partyNames = []string{string(evidence.Client), string(evidence.Proxy), string(evidence.Server), string(evidence.Network)}

// loadRoles reads a file that says whose the addresses of networks are, as YAML or
// JSON. No path is no roles.
func loadRoles(path string) ([]evidence.Role, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError{fmt.Errorf("read roles: %w: give --roles a readable file", err)}
	}
	roles, err := parseRoles(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("roles %s: %w", path, err)}
	}
	return roles, nil
}

// parseRoles reads a mapping from network to party, in its order. JSON is YAML.
func parseRoles(text []byte) (roles []evidence.Role, err error) {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", oneLine(err), rolesHelp)
	}
	for _, doc := range file.Docs {
		if roles, err = addRoles(roles, doc.Body); err != nil {
			return nil, err
		}
	}
	if len(roles) == 0 {
		return nil, fmt.Errorf("it names no network: %s", rolesHelp)
	}
	return roles, nil
}

// addRoles appends the entries of a mapping.
func addRoles(roles []evidence.Role, n ast.Node) ([]evidence.Role, error) {
	entries, err := mappingOf(n)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		role, err := roleOf(e)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(roles, func(r evidence.Role) bool { return r.Prefix == role.Prefix }) {
			return nil, fmt.Errorf("line %d: network %v stands twice: remove one of the two", line(e), role.Prefix)
		}
		roles = append(roles, role)
	}
	return roles, nil
}

// roleMap is the same mapping as a part of the configuration.
type roleMap []evidence.Role

// UnmarshalYAML reads networks and their parties.
func (r *roleMap) UnmarshalYAML(n ast.Node) error {
	roles, err := addRoles(nil, n)
	if err != nil {
		return fmt.Errorf("roles: %w", err)
	}
	*r = roles
	return nil
}

func mappingOf(n ast.Node) ([]*ast.MappingValueNode, error) {
	switch n := n.(type) {
	case nil, *ast.CommentGroupNode:
		return nil, nil
	case *ast.MappingNode:
		return n.Values, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, nil
	}
	return nil, fmt.Errorf("line %d: it is no mapping: %s", n.GetToken().Position.Line, rolesHelp)
}

func line(e *ast.MappingValueNode) int { return e.Key.GetToken().Position.Line }

// roleOf reads one entry: a network, or one address, and its party.
func roleOf(e *ast.MappingValueNode) (r evidence.Role, err error) {
	key := e.Key.GetToken().Value
	if r.Prefix, err = parseNetwork(key); err != nil {
		return r, fmt.Errorf("line %d: %w", line(e), err)
	}
	value := e.Value.GetToken().Value
	if !slices.Contains(partyNames, value) {
		return r, fmt.Errorf("line %d: the party of %s is %q: must be one of %s", line(e), key, value, strings.Join(partyNames, ", "))
	}
	r.Party = evidence.Party(value)
	return r, nil
}

// parseNetwork reads "192.0.2.0/24" or one address. Bits behind the prefix are no
// error: an interface's own address with its prefix names its network.
func parseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a.WithZone("").Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%q is not a network: write it as 192.0.2.0/24 or \"2001:db8::/64\", or give one address", text)
	}
	return p.Masked(), nil
}
