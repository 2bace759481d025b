// Package repocheck holds tests about the repository itself: who may import
// whom, where files stand, and whether what is said twice is said the same. It
// ships nothing and must not know what any package does.
//
// It reads the files of the tree and asks "go list"; it works without git, so
// that it runs in an unpacked source package too.
package repocheck
