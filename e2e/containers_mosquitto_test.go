//go:build e2e

package e2e

import (
	"cmp"
	"os"
	"strings"
	"testing"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

const mosquittoWebSocketPort = "9001/tcp"

// mosquittoSpec is a container of Mosquitto, named broker. Its ports stay the same over a restart.
func mosquittoSpec(t *testing.T, form stampForm) spec {
	t.Helper()
	const passwords = "/mosquitto/config/passwords"
	conf := mosquittoConf(t, "1883", "9001", "/mosquitto/data", passwords, form.conf...)
	return spec{
		name: "broker", image: cmp.Or(os.Getenv("PRESENCE_E2E_MOSQUITTO_IMAGE"), mosquittoImage),
		env: map[string]string{"TZ": form.tz},
		files: []testcontainers.ContainerFile{
			{Reader: strings.NewReader(conf), ContainerFilePath: "/mosquitto/config/mosquitto.conf", FileMode: 0o644},
			{Reader: strings.NewReader(mosquittoPasswords(t)), ContainerFilePath: passwords, FileMode: 0o644},
		},
		ports: []string{mqttPort, mosquittoWebSocketPort},
		fixed: map[string]int{mqttPort: freePort(t), mosquittoWebSocketPort: freePort(t)},
		ready: wait.ForAll(wait.ForListeningPort(mqttPort), wait.ForListeningPort(mosquittoWebSocketPort)),
	}
}

// onMosquitto returns the target for the clients of a Mosquitto.
func (tgt Target) onMosquitto(t *testing.T, c *dockerContainer, form stampForm) Target {
	t.Helper()
	tgt.MQTT, tgt.WebSocket = c.addr(t, mqttPort), "ws://"+c.addr(t, mosquittoWebSocketPort)
	tgt.Unkeyed, tgt.Unordered, tgt.NamesStrangers = true, form.name == "none", namesStrangers(t, tgt.MQTT)
	return tgt
}

// TestContainerStampForms_H9 reads Mosquitto's log in each form of its stamps.
func TestContainerStampForms_H9(t *testing.T) {
	for _, form := range stampForms {
		t.Run(form.name, func(t *testing.T) {
			d := newDocker(t)
			broker := d.start(mosquittoSpec(t, form))
			_, tgt := startPresence(d, map[string]string{"PRESENCE_MQTT_URL": "mqtt://broker:1883", "PRESENCE_MQTT_TIMEZONE": form.timezone})
			scenarioStampForm(t, tgt.onMosquitto(t, broker, form).open(t))
		})
	}
}
