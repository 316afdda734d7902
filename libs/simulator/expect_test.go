package simulator

// expectation is what a setup's answers are promised to be.
type expectation struct {
	exact       bool // L2: nothing is unknown, and the current connection is the true one; collisions of keys apart
	exactClocks bool // the same while clocks are set
	// ceiling is how many of a hundred clients may be unknown at rest, by mode.
	ceiling [numModes]float64
}

// expectations of every setup. What a dialect does not tell has its price, stated here: EMQX 4 by default and 5.0 do not tell of takeovers, so that
// the order of two connections on two nodes within the allowance is open; a disconnect without key may be anybody's (custom, tdmq); refused
// CONNECTs (mosquitto-2.0, mosquitto-plugin) and late ends of WebSockets (mosquitto-2.0) look like the client's own end; persistent sessions
// that end without a word (nanomq, mosquitto-plugin) leave next to nothing certain.
var expectations = map[string]expectation{
	"emqx":              {exact: true, exactClocks: true, ceiling: [numModes]float64{2, 6, 12, 16}},
	"emqx-5.0":          {ceiling: [numModes]float64{6, 8, 12, 16}},
	"emqx-4.3":          {ceiling: [numModes]float64{6, 8, 12, 16}},
	"emqx-4.3-flagged":  {ceiling: [numModes]float64{10, 12, 14, 16}},
	"emqx-mixed":        {ceiling: [numModes]float64{10, 8, 14, 16}},
	"emqx-4.0":          {ceiling: [numModes]float64{6, 26, 12, 16}},
	"emqx-4-events":     {ceiling: [numModes]float64{5, 26, 12, 16}},
	"rmqtt":             {ceiling: [numModes]float64{2, 20, 8, 16}},
	"tdmq":              {ceiling: [numModes]float64{60, 65, 60, 60}},
	"tdmq-keyed":        {exact: true, exactClocks: true, ceiling: [numModes]float64{4, 5, 5, 7}},
	"mosquitto-2.0-tcp": {exact: true, ceiling: [numModes]float64{0, 35, 22, 16}},
	"mosquitto-2.0":     {ceiling: [numModes]float64{25, 42, 45, 38}},
	"mosquitto-2.1":     {exact: true, ceiling: [numModes]float64{0, 22, 18, 16}},
	"mosquitto-plugin":  {ceiling: [numModes]float64{80, 100, 100, 100}},
	"nanomq":            {ceiling: [numModes]float64{100, 100, 100, 100}},
	"aws":               {exact: true, exactClocks: true, ceiling: [numModes]float64{2, 3, 3, 4}},
	"status-topic":      {ceiling: [numModes]float64{42, 38, 42, 38}},
	"sparkplug":         {exact: true, exactClocks: true, ceiling: [numModes]float64{1, 1, 1, 1}},
	"custom":            {ceiling: [numModes]float64{65, 70, 62, 62}},
	"custom-reusable":   {ceiling: [numModes]float64{8, 5, 7, 7}},
	"custom-unique-key": {ceiling: [numModes]float64{8, 2, 6, 6}},
}
