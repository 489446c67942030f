import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

/**
 * JDBC with several hosts: java -cp postgresql.jar Example.java 'jdbc:postgresql://a,b,c/db?targetServerType=primary…'
 *
 * Keeps one connection and writes through it; when it breaks, connects anew, and the driver finds the primary. Ends once the
 * primary is another server than at first, and prints both.
 */
public class Example {
    public static void main(String[] arguments) throws InterruptedException {
        // Without limits, a connection to a machine that lost its power hangs for minutes. hostRecheckSeconds=0: the
        // driver would believe for ten seconds that the former primary still is one.
        String url = arguments[0] + "&connectTimeout=2&socketTimeout=3&hostRecheckSeconds=0";
        String first = null;
        while (true) {
            try (Connection connection = DriverManager.getConnection(url);
                    Statement statement = connection.createStatement()) {
                while (true) {
                    String sql = "INSERT INTO example VALUES ('jdbc') RETURNING host(inet_server_addr())";
                    try (ResultSet rows = statement.executeQuery(sql)) {
                        rows.next();
                        String server = rows.getString(1);
                        if (!server.equals(first)) {
                            System.out.println(server);
                            if (first != null) {
                                return;
                            }
                            first = server;
                        }
                    }
                    Thread.sleep(200);
                }
            } catch (SQLException error) {
                // Whether the last row was written is not known.
                Thread.sleep(200);
            }
        }
    }
}
