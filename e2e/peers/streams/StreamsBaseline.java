import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * A baseline of the bench: Kafka Streams with a RocksDB store and its changelog, keeping the newest event of each client.
 *
 * <p>It does less than a materializer: the newest event by time wins, whatever connection it ends; there are no transitions, no
 * indexes, no history. Arguments are the brokers, the topic and an empty folder. It prints "done EVENTS SECONDS" once it has applied
 * every event that the topic had at the start, and ends when standard input does.
 */
public final class StreamsBaseline {
  private static final int THREADS = 2;
  private static final long CACHE_BYTES = 256L << 20;
  private static final int POLL_RECORDS = 20_000;

  /** What must be read of a client event. */
  @JsonIgnoreProperties(ignoreUnknown = true)
  static final class Event {
    @JsonProperty("type") String type;
    @JsonProperty("node") String node;
    @JsonProperty("time_ms") long timeMs;
  }

  private static final ObjectReader READER = new ObjectMapper().readerFor(Event.class);

  private StreamsBaseline() {}

  public static void main(String[] args) throws Exception {
    if (args.length != 3) {
      System.err.println("give the brokers, the topic and an empty folder");
      System.exit(2);
    }
    String brokers = args[0];
    String topic = args[1];
    long total = recordsIn(brokers, topic);
    AtomicLong applied = new AtomicLong();
    CountDownLatch all = new CountDownLatch(1);

    StreamsBuilder builder = new StreamsBuilder();
    builder.stream(topic, Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
        .groupByKey()
        .aggregate(() -> null, (key, value, table) -> {
          byte[] newest = newest(table, value);
          if (applied.incrementAndGet() == total) {
            all.countDown();
          }
          return newest;
        }, Materialized.<byte[], byte[], KeyValueStore<Bytes, byte[]>>as("presence")
            .withKeySerde(Serdes.ByteArray()).withValueSerde(Serdes.ByteArray()));

    KafkaStreams streams = new KafkaStreams(builder.build(), config(brokers, args[2]));
    streams.setUncaughtExceptionHandler(e -> {
      e.printStackTrace();
      Runtime.getRuntime().halt(1);
      return StreamThreadExceptionResponse.SHUTDOWN_APPLICATION;
    });
    long began = System.nanoTime();
    streams.start();
    all.await();
    System.out.printf(Locale.ROOT, "done %d %.3f%n", total, (System.nanoTime() - began) / 1e9);
    System.out.flush();
    while (System.in.read() >= 0) { // its end is what counts
    }
    streams.close(Duration.ofSeconds(10));
    System.exit(0);
  }

  /** The event's time stands before the event in the table, so that it need not be decoded again. */
  private static byte[] newest(byte[] table, byte[] value) {
    Event event;
    try {
      event = READER.readValue(value);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    if (table != null && ByteBuffer.wrap(table).getLong() > event.timeMs) {
      return table;
    }
    return ByteBuffer.allocate(Long.BYTES + value.length).putLong(event.timeMs).put(value).array();
  }

  private static Properties config(String brokers, String folder) {
    Properties p = new Properties();
    p.put(StreamsConfig.APPLICATION_ID_CONFIG, "bench-streams-" + Long.toString(System.nanoTime(), 36));
    p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
    p.put(StreamsConfig.STATE_DIR_CONFIG, folder);
    p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, THREADS);
    p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, CACHE_BYTES);
    p.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
    p.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, POLL_RECORDS);
    return p;
  }

  /** Counts the records of a topic of which none has been deleted. */
  private static long recordsIn(String brokers, String topic) throws Exception {
    Properties p = new Properties();
    p.put(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
    try (Admin admin = Admin.create(p)) {
      Map<TopicPartition, OffsetSpec> ends = new HashMap<>();
      admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions()
          .forEach(partition -> ends.put(new TopicPartition(topic, partition.partition()), OffsetSpec.latest()));
      long total = 0;
      for (var end : admin.listOffsets(ends).all().get().values()) {
        total += end.offset();
      }
      if (total == 0) {
        throw new IllegalStateException("topic " + topic + " is empty");
      }
      return total;
    }
  }
}
