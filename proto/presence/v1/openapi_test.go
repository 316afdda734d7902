package presencev1_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// plainCalls are served by plain handlers: no RPC has them as its HTTP rule.
var plainCalls = []string{
	"GET /client-id/{client_id}/status",
	"POST /client-id/{client_id}/status",
	"GET /openapi.json",
	"GET /v1/clients:watch",
}

// publicCalls need no account, so none of the error answers applies to them.
var publicCalls = []string{"GET /openapi.json"}

func TestOpenAPIListsEveryCall(t *testing.T) {
	var want []string
	for rule := range httpRules(t) {
		want = append(want, rule)
	}
	if len(want) == 0 {
		t.Fatal("no method has an HTTP rule")
	}
	want = append(want, plainCalls...)
	slices.Sort(want)

	got := slices.Sorted(maps.Keys(operations(t, document(t))))
	if !slices.Equal(got, want) {
		t.Errorf("calls in the document:\n\t%s\nHTTP rules and plain calls:\n\t%s",
			strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestOpenAPINamesVersionAndLicence(t *testing.T) {
	doc := document(t)
	for _, want := range []struct {
		value string
		path  []string
	}{
		{"2.0", []string{"swagger"}},
		{"Presence", []string{"info", "title"}},
		{"v1", []string{"info", "version"}},
		{"Apache-2.0", []string{"info", "license", "name"}},
		{"basic", []string{"securityDefinitions", "basic", "type"}},
	} {
		if got := at(doc, want.path...); got != want.value {
			t.Errorf("%s: got %v, want %q", strings.Join(want.path, "."), got, want.value)
		}
	}
}

func TestOpenAPIStatesErrorAnswers(t *testing.T) {
	doc := document(t)
	for call, op := range operations(t, doc) {
		if slices.Contains(publicCalls, call) {
			if security, ok := op["security"].([]any); !ok || len(security) != 0 {
				t.Errorf("%s: security is %v, want an empty list: no account is needed", call, op["security"])
			}
			continue
		}
		codes := []string{"400", "401", "403", "414", "429", "500", "503", "504"}
		if strings.HasPrefix(call, "GET /v1/clients/{client_id}") {
			codes = append(codes, "404")
		}
		if strings.HasPrefix(call, "POST /v1/") {
			codes = append(codes, "413")
		}
		for _, code := range codes {
			answer, ok := at(op, "responses", code).(map[string]any)
			if !ok {
				t.Errorf("%s: no answer %s; add it to openapi.overlay.json", call, code)
				continue
			}
			answer = resolve(t, doc, answer)
			if ref := at(answer, "schema", "$ref"); ref != "#/definitions/Error" {
				t.Errorf("%s: answer %s has the schema %v, want #/definitions/Error", call, code, ref)
			}
			for header, of := range map[string]string{"Retry-After": "429", "WWW-Authenticate": "401"} {
				if code == of && at(answer, "headers", header) == nil {
					t.Errorf("%s: answer %s has no header %s", call, code, header)
				}
			}
		}
		if at(op, "responses", "200") == nil {
			t.Errorf("%s: no answer 200", call)
		}
	}
	if got := at(doc, "definitions", "Error", "properties", "code", "type"); got != "integer" {
		t.Errorf("code of an error is of type %v, want integer", got)
	}
}

// Fields stand under their proto names in every answer and in every parameter.
func TestOpenAPIUsesProtoNames(t *testing.T) {
	doc := document(t)
	for rule, method := range httpRules(t) {
		fields := method.Input().Fields()
		parameters, _ := operations(t, doc)[rule]["parameters"].([]any)
		for _, p := range parameters {
			in, name := at(p, "in"), at(p, "name").(string)
			if in != "body" && fields.ByName(protoreflect.Name(name)) == nil {
				t.Errorf("%s: parameter %q is no field of %s", rule, name, method.Input().FullName())
			}
		}
		compareMessage(t, doc, method.Output(), map[protoreflect.FullName]bool{})
	}
}

func TestOpenAPIReferencesResolve(t *testing.T) {
	doc := document(t)
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case map[string]any:
			if _, ok := node["$ref"]; ok {
				resolve(t, doc, node)
			}
			for _, child := range node {
				walk(child)
			}
		case []any:
			for _, child := range node {
				walk(child)
			}
		}
	}
	walk(doc)
}

func TestOpenAPIBytesBelongToCaller(t *testing.T) {
	clear(presencev1.OpenAPI())
	document(t)
}

func compareMessage(t *testing.T, doc map[string]any, m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) {
	t.Helper()
	if seen[m.FullName()] || m.ParentFile().Package() != "presence.v1" {
		return
	}
	seen[m.FullName()] = true

	var want []string
	for i := range m.Fields().Len() {
		field := m.Fields().Get(i)
		want = append(want, string(field.Name()))
		if field.Message() != nil {
			compareMessage(t, doc, field.Message(), seen)
		}
	}
	slices.Sort(want)
	properties, _ := at(doc, "definitions", string(m.Name()), "properties").(map[string]any)
	if got := slices.Sorted(maps.Keys(properties)); !slices.Equal(got, want) {
		t.Errorf("definition %s has the properties %v, the message has the fields %v", m.Name(), got, want)
	}
}

// httpRules returns the methods of all services by their HTTP rules, as "GET /path".
func httpRules(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	rules := make(map[string]protoreflect.MethodDescriptor)
	for _, file := range files {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				method := methods.Get(j)
				rule, ok := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
				if !ok || rule == nil {
					continue
				}
				for _, r := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
					rules[callOf(t, method, r)] = method
				}
			}
		}
	}
	return rules
}

func callOf(t *testing.T, method protoreflect.MethodDescriptor, rule *annotations.HttpRule) string {
	t.Helper()
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return "GET " + p.Get
	case *annotations.HttpRule_Put:
		return "PUT " + p.Put
	case *annotations.HttpRule_Post:
		return "POST " + p.Post
	case *annotations.HttpRule_Delete:
		return "DELETE " + p.Delete
	case *annotations.HttpRule_Patch:
		return "PATCH " + p.Patch
	case *annotations.HttpRule_Custom:
		return p.Custom.GetKind() + " " + p.Custom.GetPath()
	default:
		t.Fatalf("%s: HTTP rule without a pattern", method.FullName())
		return ""
	}
}

// operations returns the operations of a document by call, as "GET /path".
func operations(t *testing.T, doc map[string]any) map[string]map[string]any {
	t.Helper()
	paths, ok := doc["paths"].(map[string]any)
	if !ok {
		t.Fatal("the document has no paths")
	}
	ops := make(map[string]map[string]any)
	for path, item := range paths {
		for method, op := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			ops[strings.ToUpper(method)+" "+path] = op.(map[string]any)
		}
	}
	return ops
}

func document(t *testing.T) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(presencev1.OpenAPI(), &doc); err != nil {
		t.Fatalf("parsing the document: %v", err)
	}
	return doc
}

// resolve returns what a node refers to, or the node itself.
func resolve(t *testing.T, doc, node map[string]any) map[string]any {
	t.Helper()
	ref, ok := node["$ref"].(string)
	if !ok {
		return node
	}
	path, ok := strings.CutPrefix(ref, "#/")
	if !ok {
		t.Fatalf("reference %q leaves the document", ref)
	}
	target, ok := at(doc, strings.Split(path, "/")...).(map[string]any)
	if !ok {
		t.Fatalf("reference %q leads nowhere", ref)
	}
	return target
}

// at returns the value below node along keys, nil if there is none.
func at(node any, keys ...string) any {
	for _, key := range keys {
		object, ok := node.(map[string]any)
		if !ok {
			return nil
		}
		node = object[key]
	}
	return node
}
