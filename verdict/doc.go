// Package verdict is the judgement: a pure function from an incident's evidence
// to verdicts that name who reset a connection, how it is known and how sure
// one can be.
//
// It reads no file, no clock and no kernel, so that the same evidence always
// gives the same verdict. It must never claim more than its findings carry:
// where no rule fits, the verdict is unknown and says what would settle it.
package verdict
