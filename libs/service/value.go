package service

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

var durationType = reflect.TypeFor[time.Duration]()

// typeName names a field's type in help and reference, "" if options cannot
// have it.
func typeName(t reflect.Type) string {
	switch {
	case t == durationType:
		return "duration"
	case reflect.PointerTo(t).Implements(textUnmarshalerType):
		return "text"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "int"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "uint"
	case reflect.Float32, reflect.Float64:
		return "float"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.String {
			return "list"
		}
	}
	return ""
}

// parseValue converts raw to type t. Raw is a string (flag or environment
// variable), a []string (flags given several times) or what YAML decodes to. A
// secret's value stays out of the error.
func parseValue(t reflect.Type, raw any, secret bool) (reflect.Value, error) {
	v := reflect.New(t).Elem()
	if raw == nil {
		return v, errors.New("has no value; give one or remove the key")
	}
	if err := setValue(v, raw); err != nil {
		if secret {
			return v, errors.New("the secret's value does not parse")
		}
		return v, err
	}
	return v, nil
}

func setValue(v reflect.Value, raw any) error {
	t := v.Type()
	text, isText := raw.(string)
	switch typeName(t) {
	case "duration":
		d, err := time.ParseDuration(text)
		if !isText || err != nil {
			return fmt.Errorf("%s is not a duration; give a number with a unit, such as 500ms, 10s or 2m", show(raw))
		}
		v.SetInt(int64(d))
	case "text":
		if !isText {
			return fmt.Errorf("%s is not text; put it in quotes", show(raw))
		}
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("%s does not parse: %w", show(raw), err)
		}
	case "string":
		if !isText {
			return fmt.Errorf("%s is not text; put it in quotes", show(raw))
		}
		v.SetString(text)
	case "bool":
		b, err := strconv.ParseBool(fmt.Sprint(raw))
		if err != nil {
			return fmt.Errorf("%s is neither true nor false", show(raw))
		}
		v.SetBool(b)
	case "int":
		n, err := strconv.ParseInt(fmt.Sprint(raw), 10, t.Bits())
		if err != nil {
			return fmt.Errorf("%s is not a whole number of at most %d bits", show(raw), t.Bits())
		}
		v.SetInt(n)
	case "uint":
		n, err := strconv.ParseUint(fmt.Sprint(raw), 10, t.Bits())
		if err != nil {
			return fmt.Errorf("%s is not a whole number, zero or above, of at most %d bits", show(raw), t.Bits())
		}
		v.SetUint(n)
	case "float":
		f, err := strconv.ParseFloat(fmt.Sprint(raw), t.Bits())
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%s is not a finite number", show(raw))
		}
		v.SetFloat(f)
	case "list":
		items, err := listItems(raw)
		if err != nil {
			return err
		}
		v.Set(reflect.MakeSlice(t, len(items), len(items)))
		for i, item := range items {
			v.Index(i).SetString(item)
		}
	default:
		return fmt.Errorf("type %s is unsupported", t)
	}
	return nil
}

func listItems(raw any) ([]string, error) {
	switch raw := raw.(type) {
	case string:
		return splitList(raw)
	case []string:
		return raw, nil
	case []any:
		items := make([]string, len(raw))
		for i, item := range raw {
			text, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("item %d, %s, is not text; put it in quotes", i, show(item))
			}
			items[i] = text
		}
		return items, nil
	}
	return nil, fmt.Errorf("%s is not a list", show(raw))
}

// splitList splits at commas. Items that hold a comma can be given in YAML.
func splitList(text string) ([]string, error) {
	items := strings.Split(text, ",")
	for i, item := range items {
		items[i] = strings.TrimSpace(item)
		if items[i] == "" {
			return nil, fmt.Errorf("%q has an empty item; separate the items by single commas", text)
		}
	}
	return items, nil
}

// formatValue prints v the way it can be given.
func formatValue(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if text, err := m.MarshalText(); err == nil {
			return string(text)
		}
	}
	if v.Kind() == reflect.Slice {
		items := make([]string, v.Len())
		for i := range items {
			items[i] = v.Index(i).String()
		}
		return strings.Join(items, ",")
	}
	return fmt.Sprint(v.Interface())
}

// show quotes text and leaves other YAML values as they are, so that the two
// can be told apart in an error.
func show(raw any) string {
	if text, ok := raw.(string); ok {
		return strconv.Quote(text)
	}
	return fmt.Sprint(raw)
}
