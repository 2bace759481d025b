package logs

import (
	"regexp"
	"slices"
	"strings"
)

// hidden stands in the place of a secret.
const hidden = "[redacted]"

// A name is sensitive as a whole, by a part of it, or by its last word. The names
// of ids (request_id, trace_id) are not among them: they lead to the request.
const (
	wholeNames = `key|keys|auth|pass|pwd|sid|sig|pin|otp|jwt|creds?`
	partNames  = `passw(?:or)?d|passphrase|secret|token|credential|signature|session_?id|sessid|api[_-]?key|access[_-]?key|private[_-]?key`
	lastNames  = `[\w.-]*[_-](?:key|pass|pwd|auth|jwt|sig)`
	name       = `(?:(?:` + wholeNames + `)|[\w.-]*(?:` + partNames + `)[\w.-]*|` + lastNames + `)`
	headers    = `(?:set-)?cookie2?|(?:proxy-)?authorization|www-authenticate|x-amz-security-token`
	// Quoted values may hold escaped quotes, or be in escaped quotes themselves;
	// bare ones end where a list goes on.
	value = `(?:\\["'][^"'\\]*\\?["']|"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|[^\s"',;&<>()\[\]{}\\]+)`
)

// nameHints are parts that any sensitive name has one of.
var nameHints = []string{
	"key", "auth", "pass", "pwd", "sid", "sig", "pin", "otp", "jwt", "cred", "secret", "token", "sess",
}

// redactions are applied in order. Hints are what a text must hold in lower case,
// one of them, for the pattern to match: most lines are spared the pattern.
var redactions = []struct {
	hints  []string
	secret *regexp.Regexp
	with   string
}{
	// Private keys, to their end or the line's.
	{
		[]string{"-----begin"},
		regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|$)`),
		hidden,
	},
	// user:password@ and token@ in a URL (RFC 3986 section 3.2.1).
	{[]string{"@"}, regexp.MustCompile(`(://)[^\s/"'<>?#]*@`), "${1}" + hidden + "@"},
	// Header fields whose whole value is secret: to the quote's or the line's end.
	{
		[]string{"cookie", "authorization", "authenticate", "security-token"},
		regexp.MustCompile(`(?i)\b(` + headers + `)(\\?["']?\s*[:=]\s*\\?["'])(?:[^"'\\]|\\.)*`),
		"${1}${2}" + hidden,
	},
	{
		[]string{"cookie", "authorization", "authenticate", "security-token"},
		regexp.MustCompile(`(?i)\b(` + headers + `)(\s*[:=]\s*)[^"'\s\[][^"']*`),
		"${1}${2}" + hidden,
	},
	// Credentials behind the name of their scheme (RFC 6750, RFC 7617).
	{
		[]string{"bearer", "basic", "digest", "negotiate"},
		regexp.MustCompile(`(?i)\b(bearer|basic|digest|negotiate)\s+[A-Za-z0-9._~+/=-]{8,}`),
		"${1} " + hidden,
	},
	// JSON Web Tokens (RFC 7519): base64url of `{"`.
	{[]string{"eyj"}, regexp.MustCompile(`\beyJ[\w-]{8,}(?:\.[\w-]*){0,4}`), hidden},
	// Keys that are known by their shape: AWS, GitHub, GitLab, Slack, Stripe, Google.
	{
		[]string{"akia", "asia", "aroa", "aida", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat", "glpat-", "xox", "k_live", "k_test", "sk-", "aiza"},
		regexp.MustCompile(`\b(?:A(?:KIA|SIA|ROA|IDA)[0-9A-Z]{12,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|[rs]k_(?:live|test)_\w{10,}|sk-[\w-]{20,}|AIza[\w-]{30,})`),
		hidden,
	},
	// name=value, name: value, "name":"value", also inside a string of JSON.
	{nameHints, regexp.MustCompile(`(?i)(^|[^\w.-])(` + name + `)(\\?["']?\s?[=:]\s?)` + value), "${1}${2}${3}" + hidden},
	// --name value of a command line; = is above.
	{nameHints, regexp.MustCompile(`(?i)(^|\s)(--?` + name + `)(\s+)` + value), "${1}${2}${3}" + hidden},
}

// Redact takes obvious secrets out of a log line or a command line: passwords,
// tokens, keys, cookies and credentials. Addresses and the ids of requests and
// traces stay.
func Redact(text string) string {
	low := strings.ToLower(text)
	for _, r := range redactions {
		if hinted(low, r.hints) {
			text = r.secret.ReplaceAllString(text, r.with)
		}
	}
	return text
}

// hinted tells whether a text in lower case holds one of the hints.
func hinted(low string, hints []string) bool {
	return slices.ContainsFunc(hints, func(h string) bool { return strings.Contains(low, h) })
}
