import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * Apache's mqadmin without a JVM per command: {"args": […]} a line on stdin, {"out": "…", "err": "…"} a line on stdout.
 *
 * What a command prints while it runs is its answer; a command that ends the process, as one with wrong options does, ends
 * this one too. Run from its source, with Apache's jars on the class path.
 */
public final class Mqadmin {
    public static void main(String[] arguments) throws Exception {
        PrintStream answers = System.out;
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            JSONArray given = JSON.parseObject(line).getJSONArray("args");
            ByteArrayOutputStream out = new ByteArrayOutputStream();
            ByteArrayOutputStream err = new ByteArrayOutputStream();
            System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
            System.setErr(new PrintStream(err, true, StandardCharsets.UTF_8));
            MQAdminStartup.main0(given.toArray(new String[0]), null);
            JSONObject answer = new JSONObject();
            answer.put("out", out.toString(StandardCharsets.UTF_8));
            answer.put("err", err.toString(StandardCharsets.UTF_8));
            answers.println(answer.toJSONString());
            answers.flush();
        }
        System.exit(0);
    }
}
